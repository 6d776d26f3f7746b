"""An application on the Python SDK: all its sessions on one client. Does what each line of standard input says, a list of
a step and its arguments in JSON, and answers each with a line: what came of it, by session, or the error that ended it.
"""

import asyncio
import json
import sys

from copilot import CopilotClient, PermissionHandler, RuntimeConnection
from copilot.tools import Tool, ToolResult

address, base_url, *ids = sys.argv[1:]
client = CopilotClient(connection=RuntimeConnection.for_uri(address))
sessions = {}
# Callbacks of a kind wait for each other: none is answered before every session has asked.
gates = {kind: asyncio.Barrier(len(ids)) for kind in ("tool", "input")}


def options(id):
    async def look(invocation):
        await gates["tool"].wait()
        return ToolResult(text_result_for_llm=f"{id} saw {invocation.arguments['what']} for {invocation.session_id}")

    async def answer(request, invocation):
        await gates["input"].wait()
        return {"answer": f"{id} answers {request['question']}", "wasFreeform": True}

    parameters = {"type": "object", "properties": {"what": {"type": "string"}, "sessionId": {"type": "string"}}}
    return {
        "model": "fake",
        "provider": {"type": "openai", "wire_api": "completions", "base_url": base_url, "api_key": "x"},
        "on_permission_request": PermissionHandler.approve_all,
        "on_user_input_request": answer,
        "tools": [Tool(name="look", description="looks", handler=look, parameters=parameters)],
        # This SDK writes the ID after all that: so it comes more than 100 kB into the frame.
        "system_message": {"mode": "append", "content": 'x"sessionId":"nobody" ' * 5_000},
    }


async def create(id):
    sessions[id] = await client.create_session(session_id=id, **options(id))
    return sessions[id].session_id


async def resume(id):
    sessions[id] = await client.resume_session(id, **options(id))
    return sessions[id].session_id


async def turn(id, prompt):
    event = await sessions[id].send_and_wait(f"[[{prompt.replace('ID', id)}]]", timeout=30)
    return json.loads(event.data.content)


async def prompts(id):
    events = await sessions[id].get_events()
    return [event.data.content for event in events if event.type.value == "user.message"]


async def listed():
    return sorted(metadata.session_id for metadata in await client.list_sessions())


async def main():
    each = {step.__name__: step for step in (create, resume, turn, prompts)}
    alone = {"start": client.start, "stop": client.stop, "list": listed, "last": client.get_last_session_id}
    loop = asyncio.get_running_loop()
    while line := await loop.run_in_executor(None, sys.stdin.readline):
        step, *arguments = json.loads(line)
        try:
            if step in alone:
                said = await alone[step](*arguments)
            else:
                said = dict(zip(ids, await asyncio.gather(*(each[step](id, *arguments) for id in ids)), strict=True))
        except Exception as error:  # the test is told of everything
            said = {"error": repr(error)}
        print(json.dumps(said), flush=True)


asyncio.run(main())
