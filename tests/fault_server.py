"""A small web and S3 server on loopback, by the standard library, that fails where it is told to.

GET with ranges, HEAD, PUT (whole or in parts) and listings, anonymous. It counts ranges in flight.
"""

import base64
import io
import re
import socket
import threading
import urllib.parse
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer


class Faults:
    """What goes wrong, and what was seen. `plan` has one word per GET of a range, taken in order; then all is well."""

    def __init__(self):
        self.objects = {}
        self.buckets = {"/b"}  # of which one may ask whether they are there
        self.versions = {}
        self.plan = []
        self.head_cuts = []  # after how many bytes the answer to a HEAD ends, taken in order
        self.no_head = None  # the status of every HEAD
        self.no_ranges = False  # whole files are sent, whatever was asked for
        self.sent = 0  # bytes of bodies that somebody took
        self.moved = {}  # path -> where it has moved to, for now
        self.status = {}  # path -> status for everything
        self.by_query = {}  # query -> content of objects that a query names
        self.key = None  # what every request must be signed with, or the name of its user
        self.ranges = []  # (path, first, last)
        self.in_flight = self.most = 0
        self.hangs_up = False  # each connection is closed after an answer that does not say so
        self.gate = None  # ranges wait until so many are in flight
        self.uploads = {}
        self.uploading = lambda words: None  # is called with the query of each step of an upload
        self.lock = threading.Condition()

    def put_query(self, path, query, data):
        """An object that is told from others by its query."""
        self.by_query[query] = path
        self.put(f"{path}?{query}", data)

    def put(self, path, data):
        with self.lock:
            self.objects[path] = bytes(data)
            self.versions[path] = self.versions.get(path, 0) + 1

    def etag(self, path):
        return f'"v{self.versions[path]}-{len(self.objects[path])}"'

    def fetched(self, path):
        return sum(last - first + 1 for place, first, last in self.ranges if place == path)


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def log_message(self, *given):
        pass

    def split(self):
        path, _, query = self.path.partition("?")
        if query in self.server.faults.by_query:
            path = f"{path}?{query}"
        return urllib.parse.unquote(path), dict(urllib.parse.parse_qsl(query, keep_blank_values=True))

    def answer(self, status, body=b"", **headers):
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name.replace("_", "-"), str(value))
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def may(self):
        """Whether the request has the key that is asked for."""
        key, given = self.server.faults.key, self.headers.get("Authorization", "")
        user = base64.b64decode(given[6:]).decode().split(":")[0] if given.startswith("Basic ") else None
        return key is None or f"Credential={key}/" in given or user == key

    def refused(self, path):
        status = self.server.faults.status.get(path)
        if not self.may():
            status = 403
        if status is None and path not in self.server.faults.objects:
            status = 404
        if status is not None:
            code = {403: "AccessDenied", 404: "NoSuchKey", 503: "SlowDown"}.get(status, "Error")
            body = f"<?xml version='1.0'?><Error><Code>{code}</Code><Message>{code}</Message></Error>".encode()
            self.answer(status, body, Content_Type="application/xml")
        return status is not None

    def do_HEAD(self):
        path, _ = self.split()
        faults = self.server.faults
        if path in faults.buckets:
            return self.answer(200 if self.may() else 403)
        if faults.no_head is not None:
            return self.answer(faults.no_head)
        if path in faults.moved:
            return self.answer(302, Location=faults.moved[path])
        if not self.refused(path):
            self.send_cut(faults.head_cuts.pop(0) if faults.head_cuts else None, self.send_head, path)
        return None

    def send_head(self, path):
        faults = self.server.faults
        self.send_response(200)
        self.send_header("Content-Length", str(len(faults.objects[path])))
        self.send_header("ETag", faults.etag(path))
        self.send_header("Last-Modified", "Sat, 28 Nov 2026 00:00:00 GMT")
        self.end_headers()

    def do_GET(self):
        path, query = self.split()
        faults = self.server.faults
        if not self.may():
            return self.refused(path)
        if "list-type" in query or (path.count("/") <= 2 and "prefix" in query):
            return self.listing(path.strip("/"), query)
        if path in faults.moved:
            return self.answer(302, Location=faults.moved[path])
        if self.refused(path):
            return None
        data, etag = faults.objects[path], faults.etag(path)
        if self.headers.get("If-Match", etag) != etag:
            return self.answer(412)
        wanted = re.fullmatch(r"bytes=(\d+)-(\d+)", self.headers.get("Range", ""))
        if wanted is None or faults.no_ranges:
            return self.whole(data, etag)
        first, last = int(wanted[1]), min(int(wanted[2]), len(data) - 1)
        with faults.lock:
            fault = faults.plan.pop(0) if faults.plan else ""
            faults.ranges.append((path, first, last))
            faults.in_flight += 1
            faults.most = max(faults.most, faults.in_flight)
            faults.lock.notify_all()
            if faults.gate is not None:
                faults.lock.wait_for(lambda: faults.most >= faults.gate, 20)
        try:
            if fault.startswith("cut "):
                return self.send_cut(int(fault[4:]), self.send_range, path, data, first, last, etag, "")
            return self.send_range(path, data, first, last, etag, fault)
        finally:
            with faults.lock:
                faults.in_flight -= 1

    def send_cut(self, length, send, *given):
        """The first bytes of an answer, of its headers or of its body, and then the end of the connection."""
        if length is None:
            return send(*given)
        out, self.wfile = self.wfile, io.BytesIO()
        send(*given)
        out.write(self.wfile.getvalue()[:length])
        out.flush()
        self.wfile, self.close_connection = out, True
        self.connection.shutdown(socket.SHUT_RDWR)
        return None

    def whole(self, data, etag):
        """All of it, as long as somebody takes it."""
        self.send_response(200)
        self.send_header("Content-Length", str(len(data)))
        self.send_header("ETag", etag)
        self.end_headers()
        for at in range(0, len(data), 1 << 16):
            self.wfile.write(data[at : at + (1 << 16)])
            self.server.faults.sent += 1 << 16

    def send_range(self, path, data, first, last, etag, fault):
        faults = self.server.faults
        if fault in ("503", "403"):
            return self.answer(int(fault))
        if fault == "change":
            faults.put(path, data[::-1])
            return self.answer(
                412 if self.headers.get("If-Match") else 206, b"" if self.headers.get("If-Match") else data
            )
        body = data[first : last + 1]
        self.send_response(206)
        sent = body[: len(body) // 2] if fault in ("short", "drop") else body
        self.send_header("Content-Length", str(len(sent) if fault == "short" else len(body)))
        self.send_header("Content-Range", f"bytes {first}-{first + len(body) - 1}/{len(data)}")
        self.send_header("ETag", etag)
        self.end_headers()
        self.wfile.write(sent)
        self.close_connection = self.close_connection or faults.hangs_up
        if fault == "drop":
            self.close_connection = True
            self.wfile.flush()
            self.connection.close()
        return None

    def listing(self, bucket, query):
        prefix = query.get("prefix", "")
        names = [
            name[len(bucket) + 2 :] for name in sorted(self.server.faults.objects) if name.startswith(f"/{bucket}/")
        ]
        names = [name for name in names if name.startswith(prefix)]
        if query.get("delimiter"):
            names = [name for name in names if "/" not in name[len(prefix) :]]
        entries = "".join(
            f"<Contents><Key>{name}</Key><Size>{len(self.server.faults.objects[f'/{bucket}/{name}'])}</Size>"
            "<LastModified>2026-11-28T00:00:00.000Z</LastModified></Contents>"
            for name in names
        )
        body = (
            f"<?xml version='1.0'?><ListBucketResult><Name>{bucket}</Name><KeyCount>{len(names)}</KeyCount>"
            f"<IsTruncated>false</IsTruncated>{entries}</ListBucketResult>"
        ).encode()
        self.answer(200, body, Content_Type="application/xml")

    def body(self):
        chunked = "chunked" in (self.headers.get("Transfer-Encoding") or "")
        found = self.chunks() if chunked else self.rfile.read(int(self.headers.get("Content-Length", 0)))
        return unchunked(found) if "aws-chunked" in (self.headers.get("Content-Encoding") or "") else found

    def chunks(self):
        found = b""
        while size := int(self.rfile.readline().split(b";")[0], 16):
            found += self.rfile.read(size)
            self.rfile.readline()
        while self.rfile.readline().strip():
            pass
        return found

    def do_PUT(self):
        path, query = self.split()
        faults = self.server.faults
        data = self.body()
        faults.uploading(query)
        if path in faults.status or not self.may():
            self.refused(path)
        elif "uploadId" in query:
            faults.uploads[int(query["partNumber"])] = data
            self.answer(200, ETag='"part"')
        else:
            faults.put(path, data)
            self.answer(200, ETag='"whole"')

    def do_DELETE(self):
        self.server.faults.objects.pop(self.split()[0], None)
        self.answer(204)

    def do_POST(self):
        path, query = self.split()
        faults = self.server.faults
        self.body()
        faults.uploading(query)
        if "uploads" in query:
            faults.uploads.clear()
            bucket, _, key = path.strip("/").partition("/")
            text = "<InitiateMultipartUploadResult><Bucket>{}</Bucket><Key>{}</Key><UploadId>u</UploadId>"
            body = f"<?xml version='1.0'?>{text.format(bucket, key)}</InitiateMultipartUploadResult>"
        else:
            faults.put(path, b"".join(data for _, data in sorted(faults.uploads.items())))
            body = "<?xml version='1.0'?><CompleteMultipartUploadResult><ETag>x</ETag></CompleteMultipartUploadResult>"
        self.answer(200, body.encode(), Content_Type="application/xml")


def unchunked(raw):
    """The content of aws-chunked bytes."""
    found, at = b"", 0
    while True:
        end = raw.index(b"\r\n", at)
        size = int(raw[at:end].split(b";")[0], 16)
        if not size:
            return found
        found += raw[end + 2 : end + 2 + size]
        at = end + 4 + size


class Server(ThreadingHTTPServer):
    daemon_threads = True

    def handle_error(self, request, client_address):
        pass


@contextmanager
def serving():
    """A server of one's own: (its faults, http://host:port, the query of S3 URIs)."""
    server = Server(("127.0.0.1", 0), Handler)
    server.faults = Faults()
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True)
    thread.start()
    place = f"127.0.0.1:{server.server_address[1]}"
    try:
        yield (
            server.faults,
            f"http://{place}",
            f"?endpoint_override={place}&scheme=http&region=us-east-1&anonymous=true",
        )
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


def free_ports(count):
    """Ports of loopback for other servers."""
    sockets = [socket.create_server(("127.0.0.1", 0)) for _ in range(count)]
    ports = [one.getsockname()[1] for one in sockets]
    for one in sockets:
        one.close()
    return ports
