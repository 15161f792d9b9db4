"""Notebooks whose code is newer than what is published of them.

Executed again they leave this list: a claim that is listed and still said is an error. Each
names the claims that are published in words that its code no longer has; all others must still be
said.
"""

PENDING: dict[str, set[str]] = {}
