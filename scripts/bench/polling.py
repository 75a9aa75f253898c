"""Lets idle processors poll during the benchmark.

In a virtual machine that halts an idle processor at once, most of a request to a filesystem in user space is the wake-up
of a halted processor. The benchmark therefore sets the kernel's own default for the time of the run. The setting
belongs to the machine, so it holds for every column.
"""

import contextlib
import fcntl
import signal
from pathlib import Path

from places import note

GOVERNOR = Path("/sys/devices/system/cpu/cpuidle/current_governor")
PARAMETER = Path("/sys/module/haltpoll/parameters/guest_halt_poll_ns")
DEFAULT = "200000"


@contextlib.contextmanager
def polling():
    """Sets the default, and puts back what was there, also after an error or a signal. Yields a note for the report."""
    if not PARAMETER.exists() or not GOVERNOR.exists() or GOVERNOR.read_text().strip() != "haltpoll":
        yield "as configured on this machine (its idle governor is not haltpoll)"
        return
    with PARAMETER.open() as parameter:
        # A second benchmark would read our value as the machine's own, and put that back at its end.
        try:
            fcntl.flock(parameter, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise SystemExit("bench: another benchmark is running on this machine") from None
        before = parameter.read().strip()
        try:
            PARAMETER.write_text(DEFAULT)
            note(f"guest_halt_poll_ns={DEFAULT} during the run; it was {before}")
            yield f"guest_halt_poll_ns={DEFAULT} (the kernel's default) for every column; this machine had {before}"
        finally:
            signals = {signal.SIGINT, signal.SIGTERM, signal.SIGHUP}
            signal.pthread_sigmask(signal.SIG_BLOCK, signals)
            PARAMETER.write_text(before)
            note(f"guest_halt_poll_ns={before} again")
            signal.pthread_sigmask(signal.SIG_UNBLOCK, signals)
