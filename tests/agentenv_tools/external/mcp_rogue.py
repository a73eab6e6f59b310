"""An MCP server by hand, that goes wrong in the way its argument says. Standard library only."""

import json
import os
import sys
import time

HOW = sys.argv[1]


def write(line: str) -> None:
    sys.stdout.write(line + "\n")
    sys.stdout.flush()


def say(**message: object) -> None:
    write(json.dumps({"jsonrpc": "2.0", **message}))


def describe(name: str, **schema: object) -> dict[str, object]:
    return {"name": name, "inputSchema": {"type": "object", **schema}}


def tools(params: dict[str, str]) -> dict[str, object]:
    if HOW == "pages":
        page = int(params.get("cursor", "0"))
        more = {"nextCursor": str(page + 1)} if page < 4 else {}
        return {"tools": [describe(f"tool_{page}")], **more}
    if HOW == "endless":
        return {"tools": [], "nextCursor": "again"}
    if HOW == "laughs":
        levels = {f"d{i}": {"anyOf": [{"$ref": f"#/$defs/d{i + 1}"}] * 10} for i in range(12)}
        bomb = {"a": {"$ref": "#/$defs/d0"}}
        return {"tools": [describe("a", properties=bomb, **{"$defs": {**levels, "d12": {}}})]}
    if HOW == "twins":
        return {"tools": [describe("a.b"), describe("a/b")]}
    return {"tools": [describe("act")]}


def act(number: int) -> None:
    match HOW:
        case "refuses":
            say(id=number, error={"code": -32602, "message": "no such colour"})
        case "fails":
            say(id=number, error={"code": -32603, "message": "out of order"})
        case "malformed":
            say(id=number, result={"content": "not a list"})
        case "garbage":
            write('{"this is": "no message"}')
        case "chatter":
            write("a line from a careless library")
            say(method="notifications/tools/list_changed")
            say(method="notifications/message", params={"level": "info", "data": "hello"})
            say(id=number, result={"content": [{"type": "text", "text": "fine"}]})
        case "nameless flood":
            write('{"x": "' + "x" * 9_000_000 + '"}')
        case "rich":
            secret = os.environ.get("SECRET", "")
            say(id=number, result={"structuredContent": {"sum": 5, "key": secret}, "content": []})
        case "mute":
            os.close(1)
            time.sleep(600)
        case _:
            pass


if HOW == "blurts":
    secret = os.environ["SECRET"]
    sys.stderr.write("the end of a secret: " + secret + "." * (400 - len(secret) // 2))
    sys.exit(9)
if HOW == "no start":
    sys.stderr.write("cannot find my database\n")
    sys.exit(9)
for line in sys.stdin:
    message = json.loads(line)
    match message.get("method"):
        case "initialize" if HOW != "silent":
            version = message["params"]["protocolVersion"]
            info = {"name": "rogue", "version": "1"}
            result = {"protocolVersion": version, "capabilities": {"tools": {}}, "serverInfo": info}
            say(id=message["id"], result=result)
        case "tools/list":
            say(id=message["id"], result=tools(message.get("params") or {}))
        case "tools/call":
            act(message["id"])
        case "ping" if HOW != "deaf":
            say(id=message["id"], result={})
if HOW == "lingers":
    import signal

    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    time.sleep(600)
