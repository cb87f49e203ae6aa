"""The tour behind ``quadgrad demo``: two real jobs, checked against independent numbers, and one picture.

Each part computes without printing (``survival``, ``network``, ``distances``, ``cells``); ``report`` and
``picture`` show, and alone need rich and matplotlib; ``run`` puts the parts in order. Nothing else in
quadgrad imports this package.
"""
