"""The coordinator's side of secure aggregation: it passes on what it cannot read, and adds up what it cannot see.

terms     what a plan says of masks              unmasking   the masks that are left on a sum, taken off
tally     one attempt without a network: what clients have said, what they are told next
stages    the same over Flower's Grid            masked      what the strategy needs of it all
rules     what it cannot be used together with
"""
