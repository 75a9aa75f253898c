"""A network link with latency and a rate, between this network namespace and a new one.

The kernel's netem is a module that small kernels lack, so two TUN devices and this process make the link: a packet that
leaves one namespace enters the other after the time that a wire of this rate and length takes. Segmentation offload is on,
so the kernel hands over up to 64 KiB at once and the process costs little; the windows of TCP grow as on a real wire,
because they count segments.

Needs root, and a network namespace of its own (`unshare --net`). The link ends with the process that made it.
"""

import collections
import ctypes
import fcntl
import multiprocessing
import os
import select
import signal
import struct
import subprocess
import time

TUNSETIFF, TUNSETOFFLOAD = 0x400454CA, 0x400454D0
IFF_TUN, IFF_NO_PI, IFF_VNET_HDR = 0x0001, 0x1000, 0x4000
CHECKSUMS_AND_TCP4 = 0x01 | 0x02
CLONE_NEWNET = 0x40000000
PR_SET_PDEATHSIG = 1
# struct virtio_net_hdr: flags, type, length of headers, size of a segment, start and offset of the checksum.
HEADER = 10
# What a segment has besides its payload: headers of IP and TCP, and those, preamble and gap of Ethernet.
REPEATED, ETHERNET = 52, 38

libc = ctypes.CDLL(None, use_errno=True)


def die_with_parent():
    """For the child, after fork: it gets SIGKILL when the thread that made it ends."""
    libc.prctl(PR_SET_PDEATHSIG, signal.SIGKILL)


class Link:
    """The link. `near` is this side's address; the far side has the addresses `far`."""

    def __init__(self, near, far, delay, rate, queue=0.1):
        """`delay` and `queue` are in seconds (one way; the longest wait for the wire), `rate` in bits per second."""
        self.pipe, theirs = multiprocessing.Pipe()
        context = multiprocessing.get_context("fork")
        self.process = context.Process(target=_serve, args=(theirs, near, far, delay, rate, queue), daemon=True)
        self.process.start()
        theirs.close()
        answer = self.pipe.recv()
        if answer != "ready":
            raise SystemExit(f"no link: {answer}")

    def command(self, *words):
        """The words that run a command on the far side."""
        return ["nsenter", f"--net=/proc/{self.process.pid}/ns/net", "--", *words]

    def ask(self, what):
        self.pipe.send(what)
        return self.pipe.recv()

    def cut(self):
        """From now on every packet is lost."""
        self.ask("cut")

    def restore(self):
        self.ask("restore")

    def count(self):
        """What has passed since the start: bytes with all headers to and from the far side, connections opened."""
        return self.ask("count")

    def close(self):
        self.process.kill()
        self.process.join()


def _open(name, addresses):
    fd = os.open("/dev/net/tun", os.O_RDWR | os.O_NONBLOCK)
    fcntl.ioctl(fd, TUNSETIFF, struct.pack("16sH22x", name.encode(), IFF_TUN | IFF_NO_PI | IFF_VNET_HDR))
    fcntl.ioctl(fd, TUNSETOFFLOAD, CHECKSUMS_AND_TCP4)
    for words in (["ip", "link", "set", "lo", "up"],
                  *(["ip", "address", "add", f"{address}/24", "dev", name] for address in addresses),
                  ["ip", "link", "set", name, "txqueuelen", "4000", "up"]):
        subprocess.run(words, check=True, capture_output=True, text=True)
    return fd


def _serve(pipe, near, far, delay, rate, queue):
    die_with_parent()
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        here = _open("near", [near])
        if libc.unshare(CLONE_NEWNET) != 0:
            raise OSError(ctypes.get_errno(), "unshare")
        there = _open("far", far)
        # Its turn must not wait for the programs that are measured.
        os.sched_setscheduler(0, os.SCHED_FIFO, os.sched_param(1))
    except subprocess.CalledProcessError as error:
        return pipe.send(f"{' '.join(error.cmd)}: {error.stderr.strip()}")
    except OSError as error:
        return pipe.send(str(error))
    pipe.send("ready")
    wires = {here: _Wire(there, delay, rate, queue), there: _Wire(here, delay, rate, queue)}
    cut = False
    while True:
        now = time.monotonic()
        due = [wire.due() for wire in wires.values()]
        due = min((one for one in due if one is not None), default=now + 3600)
        readable, _, _ = select.select([*wires, pipe], [], [], max(0.0, due - now))
        for fd in readable:
            if fd is not pipe:
                wires[fd].take(fd, cut)
                continue
            try:
                what = pipe.recv()
            except EOFError:
                return
            if what in ("cut", "restore"):
                cut = what == "cut"
            out, back = wires[here], wires[there]
            pipe.send({"sent": out.bytes, "received": back.bytes, "connections": out.connections,
                       "lost": out.lost + back.lost})
        for wire in wires.values():
            wire.give()


class _Wire:
    """One direction."""

    def __init__(self, to, delay, rate, queue):
        self.to, self.delay, self.rate, self.longest = to, delay, rate, queue
        self.frames = collections.deque()
        self.free = 0.0
        self.bytes = self.connections = self.lost = 0

    def due(self):
        return self.frames[0][0] if self.frames else None

    def take(self, fd, cut):
        # Not for ever: frames of the other direction may be due.
        for _ in range(32):
            try:
                frame = os.read(fd, HEADER + 65536)
            except BlockingIOError:
                return
            segment = struct.unpack_from("=H", frame, 4)[0]
            length = len(frame) - HEADER
            segments = max(1, -(-(length - REPEATED) // segment)) if segment else 1
            length += (segments - 1) * REPEATED + segments * ETHERNET
            now = time.monotonic()
            begin = max(now, self.free)
            if cut or begin - now > self.longest:
                self.lost += segments
                continue
            self.free = begin + length * 8 / self.rate
            self.frames.append((self.free + self.delay, frame))
            self.bytes += length
            packet = frame[HEADER:HEADER + 60]
            if packet[0] >> 4 == 4 and packet[9] == 6:
                at = (packet[0] & 15) * 4
                # SYN without ACK.
                self.connections += packet[at + 13] & 0x12 == 0x02

    def give(self):
        now = time.monotonic()
        while self.frames and self.frames[0][0] <= now:
            frame = self.frames.popleft()[1]
            try:
                os.write(self.to, frame)
            except OSError:
                # As on a wire: the receiver has no room, or does not like the packet.
                self.lost += 1
