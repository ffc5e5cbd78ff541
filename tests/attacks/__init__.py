"""Attacks on a real daemon, and what others notice of each: `python -m tests.attacks`."""
