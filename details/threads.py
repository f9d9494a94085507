"""Imported before torch, in every file that imports torch, since torch reads it only once.

A thread that waits for the others spins for a moment, then sleeps. If it spun on, as is usual, a
run beside two busy programs would take four times as long, and not twice. What the user has set
wins, under either of the two names.
"""

import os

if "OMP_WAIT_POLICY" not in os.environ:
    os.environ.setdefault("GOMP_SPINCOUNT", "1500")
