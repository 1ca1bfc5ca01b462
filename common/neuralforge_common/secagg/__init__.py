"""Secure aggregation: a coordinator learns the sum of its clients' updates, and no single one of them.

Bonawitz et al. 2017, "Practical Secure Aggregation for Privacy-Preserving Machine Learning", in its variant against an
active coordinator (§6.2: signed keys and a consistency round), on the sparse graphs of Bell et al. 2020, "Secure
Single-Server Aggregation with (Poly)Logarithmic Overhead", where there are more than 20 clients.

    keys        each client signs two fresh public keys with the identity that the others have pinned
    shares      each deals its mask key and its seed out to its neighbours, sealed for each of them
    train       each sends its update under a mask for every neighbour and one of its own
    survivors   each signs the one set of clients whose updates count
    unmask      of a survivor the seed comes together, of one that dropped out the mask key; of nobody both

What is here knows no network: `client/neuralforge/federation/secagg` is one side of it, `server/…/secagg` the other.
"""
