"""Nodes of Garage, an S3 store that is built for several nodes. See scripts/store.sh.

Everything lies below one directory. Nodes get SIGKILL from the kernel when this process ends, and a process that waits for
that end removes the directory, so that nothing is left after SIGKILL either. With three nodes or more every object is on
three of them; reads and writes need two, so one may be dead.
"""

import argparse
import ctypes
import os
import secrets
import shlex
import signal
import socket
import subprocess
import sys
import tempfile
import time
from pathlib import Path

BUCKET, REGION = "holofs", "garage"
PR_SET_PDEATHSIG = 1
libc = ctypes.CDLL(None)


def die_with_parent():
    libc.prctl(PR_SET_PDEATHSIG, signal.SIGKILL)


def free_ports(host, count):
    """Ports that nobody listens on now."""
    sockets = [socket.socket() for _ in range(count)]
    for one in sockets:
        one.bind((host, 0))
    ports = [one.getsockname()[1] for one in sockets]
    for one in sockets:
        one.close()
    return ports


class Node:
    def __init__(self, cluster, number, host, ports):
        self.cluster, self.number, self.host = cluster, number, host
        self.s3, self.rpc = ports
        self.directory = cluster.directory / f"node-{number}"
        self.log = self.directory / "log"
        self.process = None
        self.directory.mkdir()
        self.config = self.directory / "garage.toml"
        # sqlite and no fsync: the store does not outlive this process.
        self.config.write_text(
            f'metadata_dir = "{self.directory}/meta"\ndata_dir = "{self.directory}/data"\ndb_engine = "sqlite"\n'
            f'replication_factor = {cluster.replicas}\ncompression_level = "none"\ndisable_scrub = true\n'
            f'rpc_secret = "{cluster.rpc_secret}"\nrpc_bind_addr = "{host}:{self.rpc}"\n'
            f'rpc_public_addr = "{host}:{self.rpc}"\n'
            f'[s3_api]\ns3_region = "{REGION}"\napi_bind_addr = "{host}:{self.s3}"\n')
        self.config.chmod(0o600)

    def words(self, *words):
        return [*self.cluster.prefix, str(self.cluster.program), "-c", str(self.config), *words]

    def start(self):
        single = ["--single-node", "--default-bucket"] if self.cluster.replicas == 1 else []
        environment = {"PATH": os.environ["PATH"], "RUST_LOG": "garage=info", **self.cluster.defaults()}
        with self.log.open("ab") as log:
            # setsid: an interrupt from the terminal is for this process, which ends them.
            self.process = subprocess.Popen(self.words("server", *single), stdin=subprocess.DEVNULL, stdout=log, stderr=log,
                                            env=environment, preexec_fn=die_with_parent, start_new_session=True)
        (self.directory / "pid").write_text(f"{self.process.pid}\n")

    def signal(self, number):
        self.process.send_signal(number)
        if number == signal.SIGKILL:
            self.process.wait()

    def requests(self):
        """The requests that this node has answered, as its log tells them: lists of method and path."""
        found = []
        for line in self.log.read_text(errors="replace").splitlines():
            # An error is told a second time.
            words = [] if " error " in line else line.split()
            for method in ("GET", "PUT", "POST", "HEAD", "DELETE"):
                if method in words:
                    found.append((method, words[words.index(method) + 1]))
                    break
        return found

    def tell_log(self):
        print("".join(self.log.read_text(errors="replace").splitlines(True)[-20:]), file=sys.stderr)


class Cluster:
    """`hosts` has an address for each node. `prefix` comes before every command, for another network namespace; ports are
    chosen if they are not given."""

    def __init__(self, program, hosts, directory=None, ports=None, prefix=()):
        self.program, self.prefix = program, list(prefix)
        self.directory = Path(directory or tempfile.mkdtemp(prefix="holofs-store-"))
        self.directory.mkdir(parents=True, exist_ok=True)
        self.directory.chmod(0o700)
        self.keep_clean()
        self.replicas = 3 if len(hosts) >= 3 else 1
        self.rpc_secret = secrets.token_hex(32)
        self.key, self.secret = "GK" + secrets.token_hex(12), secrets.token_hex(32)
        self.nodes = [Node(self, number, host, ports or free_ports(host, 2)) for number, host in enumerate(hosts, 1)]
        for node in self.nodes:
            node.start()
        self.wait()
        if len(self.nodes) > 1:
            self.join()

    def keep_clean(self):
        """Starts the process that removes the directory when this one has ended."""
        reader, writer = os.pipe()
        script = 'read -r _; for _ in 1 2 3 4 5 6 7 8 9 10; do rm -rf --one-file-system "$1" 2>/dev/null && exit; sleep 0.2; done'
        self.cleaner = subprocess.Popen(["sh", "-c", script, "sh", str(self.directory)], stdin=reader, start_new_session=True)
        os.close(reader)
        self.writer = writer

    def defaults(self):
        return {"GARAGE_DEFAULT_ACCESS_KEY": self.key, "GARAGE_DEFAULT_SECRET_KEY": self.secret,
                "GARAGE_DEFAULT_BUCKET": BUCKET}

    def environment(self, host=None):
        """The variables of a client. `host`: a name that leads to all nodes."""
        node = self.nodes[0]
        return {"AWS_ACCESS_KEY_ID": self.key, "AWS_SECRET_ACCESS_KEY": self.secret, "AWS_REGION": REGION,
                "AWS_ENDPOINT_URL": f"http://{host or node.host}:{node.s3}", "AWS_ALLOW_HTTP": "true",
                "HOLOFS_STORE_URL": f"s3://{BUCKET}"}

    def garage(self, node, *words):
        done = subprocess.run(node.words(*words), capture_output=True, text=True, env={"PATH": os.environ["PATH"]})
        if done.returncode != 0:
            node.tell_log()
            raise SystemExit(f"garage {' '.join(words[:2])}: {done.stderr.strip()}")
        return done.stdout.strip()

    def wait(self):
        deadline = time.monotonic() + 60
        for node in self.nodes:
            while "S3 API server listening" not in node.log.read_text(errors="replace"):
                if node.process.poll() is not None or time.monotonic() > deadline:
                    node.tell_log()
                    raise SystemExit(f"node {node.number} of the store does not start")
                time.sleep(0.02)

    def join(self):
        """Makes one store of the nodes: they know each other, hold data, and have the key and the bucket."""
        first = self.nodes[0]
        names = [self.garage(node, "node", "id", "-q") for node in self.nodes]
        for name in names[1:]:
            self.garage(first, "node", "connect", name)
        for node, name in zip(self.nodes, names):
            self.garage(first, "layout", "assign", "-z", f"zone-{node.number}", "-c", "20G", name.split("@")[0])
        self.garage(first, "layout", "apply", "--version", "1")
        self.garage(first, "key", "import", "--yes", "-n", "holofs", self.key, self.secret)
        self.garage(first, "bucket", "create", BUCKET)
        self.garage(first, "bucket", "allow", "--read", "--write", "--owner", BUCKET, "--key", self.key)

    def close(self):
        for node in self.nodes:
            if node.process and node.process.poll() is None:
                node.signal(signal.SIGKILL)
        os.close(self.writer)
        self.cleaner.wait()


def main():
    parser = argparse.ArgumentParser(prog="scripts/store.sh run")
    parser.add_argument("--program", required=True, help=argparse.SUPPRESS)
    parser.add_argument("--nodes", type=int, choices=[1, 3], default=1)
    parser.add_argument("--dir", help="holds everything, and is removed at the end (default: a temporary directory)")
    parser.add_argument("command", nargs=argparse.REMAINDER)
    options = parser.parse_args()
    if options.dir and Path(options.dir).exists() and any(Path(options.dir).iterdir()):
        raise SystemExit(f"store.sh: {options.dir} is not empty")
    for number in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, lambda number, _: sys.exit(128 + number))
    cluster = Cluster(options.program, ["127.0.0.1"] * options.nodes, options.dir)
    try:
        environment = cluster.environment()
        command = options.command[1:] if options.command[:1] == ["--"] else options.command
        if command:
            sys.exit(subprocess.run(command, env={**os.environ, **environment}).returncode)
        for name, value in environment.items():
            print(f"export {name}={shlex.quote(value)}")
        for node in cluster.nodes:
            print(f"# node {node.number}: kill -9 {node.process.pid}; log: {node.log}")
        sys.stdout.flush()
        while True:
            signal.pause()
    except KeyboardInterrupt:
        sys.exit(130)
    finally:
        cluster.close()


if __name__ == "__main__":
    main()
