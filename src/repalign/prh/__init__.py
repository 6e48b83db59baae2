"""Experiments of the Platonic Representation Hypothesis: its theory, and colour from pixels and from words.

They are studies like anyone's: announced in the entry-point group `repalign.experiments`, built on public names, imported
by nothing else.
"""
