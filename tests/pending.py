"""Notebooks whose code is newer than what is published of them.

Executed again they leave this list: a claim that is listed and still said is an error. Each
names the claims that are published in words that its code no longer has; all others must still be
said.
"""

PENDING: dict[str, set[str]] = {
    "04_optuna": {
        "on 32 images one network scores anything within 20 points or more",
        "the best of thirty equals owes more than a standard error to luck",
        "on 32 images, 3 points worse often wins",
        "on 2,500 images, hardly ever",
        "the winner beats the best of the reports' space",
        "halving gives up no trial that leads",
        "the winner gains by more images and epochs",
    },
    "06_int8": {
        "where the CPU has VNNI, INT8 is faster than float",
        "the search keeps what may be lost within its limit",
        "the test images do not contradict it",
    },
}
