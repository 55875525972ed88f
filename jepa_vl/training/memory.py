"""Memory of the host."""

import ctypes
import sys


def give_back() -> None:
    """Returns to the system what was freed, where the C library keeps it for later (glibc).

    A program that is compiled and run once, such as the initialisation, leaves hundreds of
    megabytes behind that the large blocks of a training step cannot be cut from.
    """
    if sys.platform != "linux":
        return
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)  # musl has none
    if trim is not None:
        trim(0)
