"""A small API server over HTTPS that serves a few objects and grants what a ClusterRole grants, and no more.

    api_server.py CERTIFICATE KEY OBJECTS.json RULES.json TOKEN LOG

Prints its port. LOG gets a line for every request: status, verb, group/resource.
"""

import http.server
import json
import ssl
import subprocess
import sys
import threading
from urllib.parse import parse_qs, urlparse


def parse(path, method):
    """Verb, API group and resource of a request, as an authorizer sees them."""
    url = urlparse(path)
    parts = url.path.strip("/").split("/")
    group, rest = ("", parts[2:]) if parts[0] == "api" else (parts[1], parts[3:])
    if rest[:1] == ["namespaces"] and len(rest) > 2:
        rest = rest[2:]
    query = parse_qs(url.query)
    watching = query.get("watch", ["false"])[0] in ("true", "1")
    verbs = {"GET": "watch" if watching else "get" if len(rest) > 1 else "list", "POST": "create", "PATCH": "patch"}
    return verbs.get(method, method.lower()), group, rest[0] if rest else "", query


def granted(rules, verb, group, resource):
    return any(
        verb in rule["verbs"] and group in rule["apiGroups"] and resource in rule["resources"] for rule in rules
    )


class Handler(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def answer(self):
        verb, group, resource, query = parse(self.path, self.command)
        body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        if self.headers.get("Authorization") != f"Bearer {self.server.token}":
            return self.reply(401, verb, group, resource, {"kind": "Status", "code": 401})
        if not granted(self.server.rules, verb, group, resource):
            return self.reply(403, verb, group, resource, {"kind": "Status", "code": 403, "message": "forbidden"})
        if verb in ("create", "patch"):
            return self.reply(201, verb, group, resource, json.loads(body))
        if verb == "watch" and "sendInitialEvents" in query:
            refusal = {"kind": "Status", "apiVersion": "v1", "status": "Failure", "reason": "Invalid", "code": 422}
            return self.reply(422, verb, group, resource, refusal)
        if verb == "watch":
            return self.hold(verb, group, resource)
        return self.reply(200, verb, group, resource, self.list_of(group, resource))

    def list_of(self, group, resource):
        kinds = {"services": "Service", "nodes": "Node", "endpointslices": "EndpointSlice"}
        items = [item for item in self.server.objects if item["kind"] == kinds[resource]]
        for item in items:
            item["metadata"].setdefault("uid", item["metadata"]["name"])
            item["metadata"]["resourceVersion"] = "1"
        version = f"{group}/v1".lstrip("/")
        listed = {"kind": f"{kinds[resource]}List", "apiVersion": version}
        return {**listed, "metadata": {"resourceVersion": "1"}, "items": items}

    def reply(self, code, verb, group, resource, content):
        self.note(code, verb, group, resource)
        body = json.dumps(content).encode()
        self.send_response(code)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def hold(self, verb, group, resource):
        """A watch in which nothing happens."""
        self.note(200, verb, group, resource)
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Transfer-Encoding", "chunked")
        self.end_headers()
        self.wfile.flush()
        threading.Event().wait()

    def note(self, code, verb, group, resource):
        with self.server.lock:
            print(code, verb, f"{group}/{resource}", file=self.server.log, flush=True)

    def log_message(self, *_):
        pass

    do_GET = do_POST = do_PATCH = do_PUT = do_DELETE = answer


def certificates(folder):
    """An authority, and a certificate of it for 127.0.0.1."""
    run = lambda *words: subprocess.run(["openssl", *words], check=True, capture_output=True, cwd=folder)
    fresh = ["-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes"]
    run("req", "-x509", *fresh, "-keyout", "ca.key", "-out", "ca.crt", "-days", "2", "-subj", "/CN=test authority")
    run("req", *fresh, "-keyout", "server.key", "-out", "server.csr", "-subj", "/CN=test")
    (folder / "names").write_text("subjectAltName=IP:127.0.0.1\nbasicConstraints=CA:FALSE\n")
    authority = ["-CA", "ca.crt", "-CAkey", "ca.key", "-CAcreateserial"]
    run("x509", "-req", "-in", "server.csr", *authority, "-out", "server.crt", "-days", "2", "-extfile", "names")


def main():
    certificate, key, objects, rules, token, log = sys.argv[1:]
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    server.token, server.lock = token, threading.Lock()
    server.log = open(log, "a")
    with open(objects) as objects, open(rules) as rules:
        server.objects, server.rules = json.load(objects), json.load(rules)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate, key)
    server.socket = context.wrap_socket(server.socket, server_side=True)
    print(server.server_port, flush=True)
    server.serve_forever()


if __name__ == "__main__":
    main()
