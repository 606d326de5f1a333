"""How fast rows stream from a far store: a server that takes its time for the first byte and bounds each connection.

usage: python scripts/benchmarks/streaming.py [--first-byte 0.1] [--speed 50] [--megabytes 768] [--repeats 3]

Server and reader are on this machine. Three readers of the same object, in turns: `bare`, 20 connections that do
nothing but fetch ranges of 8 MiB; `rows`, all blocks of the matrix, one after the other; `eval`, the whole evaluation.
The ratios are those of the medians.
"""

import argparse
import http.client
import statistics
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import numpy as np

import bigvocab as bv
from bigvocab.storage.remote import RANGE, THREADS

CLASSES = 32_768
HEADER = 128
PIECE = 1 << 20


class Far(BaseHTTPRequestHandler):
    """One .npy of float16 zeros, range by range."""

    protocol_version = "HTTP/1.1"

    def log_message(self, *given):
        """Say nothing."""

    def do_HEAD(self):
        """Its size."""
        self.send_response(200)
        self.send_header("Content-Length", str(self.server.size))
        self.send_header("ETag", '"1"')
        self.end_headers()

    def do_GET(self):
        """A range, no faster than a connection is."""
        first, last = (int(part) for part in self.headers["Range"].removeprefix("bytes=").split("-"))
        count, begun = last - first + 1, time.perf_counter() + self.server.first_byte
        time.sleep(self.server.first_byte)
        self.send_response(206)
        self.send_header("Content-Length", str(count))
        self.send_header("Content-Range", f"bytes {first}-{last}/{self.server.size}")
        self.send_header("ETag", '"1"')
        self.end_headers()
        head = self.server.header[first : min(last + 1, HEADER)]
        self.wfile.write(head)
        sent = len(head)
        while sent < count:
            piece = min(PIECE, count - sent)
            self.wfile.write(self.server.zeros[:piece])
            sent += piece
            time.sleep(max(0.0, begun + sent / self.server.speed - time.perf_counter()))


class Server(ThreadingHTTPServer):
    """The server, with many connections."""

    daemon_threads = True
    request_queue_size = 128


def serve(rows, first_byte, speed):
    """A server of so many rows: (itself, its URI)."""
    server = Server(("127.0.0.1", 0), Far)
    text = f"{{'descr': '<f2', 'fortran_order': False, 'shape': ({rows}, {CLASSES}), }}"
    server.header = (
        b"\x93NUMPY\x01\x00" + (HEADER - 10).to_bytes(2, "little") + text.ljust(HEADER - 11).encode() + b"\n"
    )
    server.size = HEADER + rows * CLASSES * 2
    server.first_byte, server.speed, server.zeros = first_byte, speed * 1e6, memoryview(bytes(PIECE))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    return server, f"http://127.0.0.1:{server.server_address[1]}/logits.npy"


def bare(server, uri):
    """All ranges by 20 connections, and nothing else."""
    kept = threading.local()

    def fetch(start):
        if not hasattr(kept, "connection"):
            kept.connection = http.client.HTTPConnection(uri.split("/")[2])
        kept.connection.request(
            "GET", "/logits.npy", headers={"Range": f"bytes={start}-{min(start + RANGE, server.size) - 1}"}
        )
        return len(kept.connection.getresponse().read())

    with ThreadPoolExecutor(THREADS) as pool:
        assert sum(pool.map(fetch, range(0, server.size, RANGE))) == server.size


def main():
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--first-byte", type=float, default=0.1)
    parser.add_argument("--speed", type=float, default=50)
    parser.add_argument("--megabytes", type=int, default=768)
    parser.add_argument("--repeats", type=int, default=3)
    asked = parser.parse_args()
    rows = asked.megabytes * 10**6 // (2 * CLASSES)
    server, uri = serve(rows, asked.first_byte, asked.speed)
    labels = np.zeros(rows, np.int64)

    def read():
        matrix = bv.open_matrix(uri)
        step = (128 << 20) // (2 * CLASSES)
        for start in range(0, rows, step):
            matrix[start : start + step]

    readers = {"bare": lambda: bare(server, uri), "rows": read, "eval": lambda: bv.evaluate(logits=uri, labels=labels)}
    bv.evaluate(logits=np.zeros((4, CLASSES), np.float16), labels=labels[:4])  # compiles
    seconds = {name: [] for name in readers}
    for _ in range(asked.repeats):
        for name, reader in readers.items():
            begun = time.perf_counter()
            reader()
            seconds[name].append(time.perf_counter() - begun)
    medians = {name: statistics.median(found) for name, found in seconds.items()}
    print("| reader | MB/s | of bare |\n|---|---:|---:|")
    for name, median in medians.items():
        print(f"| {name} | {server.size / median / 1e6:.0f} | {medians['bare'] / median:.0%} |")
    print(f"python {sys.version.split()[0]}, bigvocab {bv.__version__}")


if __name__ == "__main__":
    main()
