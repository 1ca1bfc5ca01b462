"""What a process does to itself before it runs code of strangers; Linux, the standard library, nothing else.

Runs in a child without this project's packages on its path (`python -I -S`), so its modules import one another
relatively.
"""
