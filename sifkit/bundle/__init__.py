"""Bundles: everything that builds of some images need, in one file, for hosts without a network.

`archive` is the file, `gather` makes one, `place` puts its content where a build looks, `extras` brings the programs.
"""
