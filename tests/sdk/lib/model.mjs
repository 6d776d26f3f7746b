// A model that needs no network: an OpenAI-compatible `/v1/chat/completions`, streaming where asked to, whose answer
// proves what it was shown. With `hold()` it keeps turns waiting for a promise, never for time. A prompt of the form
// `use TOOL {"its": "arguments"}` makes it call that tool first, and its answer then has what the tool `gave`.

import { createServer } from 'node:http';

/** The text of a message's content, which may be a string or parts. */
const text = (content) => (typeof content === 'string' ? content : content.map((part) => part.text ?? '').join(''));

/** What the tests said, without what the server wraps around it. */
const said = (message) => /\[\[(.*?)\]\]/s.exec(text(message.content))?.[1];

/** The message that answers `messages`: a call of the tool the last prompt asks for, once, or the account. */
function reply(messages, prompts) {
  const asked = messages.findLastIndex((message) => message.role === 'user' && said(message) !== undefined);
  const gave = messages.slice(asked + 1).filter((message) => message.role === 'tool').map((message) => text(message.content));
  const use = /^use (\S+) (.*)$/s.exec(prompts.at(-1) ?? '');
  if (use && gave.length === 0) {
    const call = { index: 0, id: `call-${prompts.length}`, type: 'function', function: { name: use[1], arguments: use[2] } };
    return { role: 'assistant', content: '', tool_calls: [call] };
  }
  return { role: 'assistant', content: JSON.stringify({ shown: prompts.length, first: prompts[0], ...(use && { gave }) }) };
}

export class Model {
  /** The prompts of every completion asked for, oldest first, each a list of what the user said so far. */
  requests = [];
  /** The names of the tools that were offered with each of them. */
  offered = [];
  /** The last words of those who left before their answer. */
  abandoned = [];
  #server;
  #held = null;

  static async start(t) {
    const model = new Model();
    model.#server = createServer((request, response) => model.#answer(request, response).catch((error) => {
      response.destroy(error);
    }));
    await new Promise((resolve) => model.#server.listen(0, '127.0.0.1', resolve));
    t.after(() => {
      model.release();
      model.#server.closeAllConnections();
      model.#server.close();
    });
    return model;
  }

  get baseUrl() { return `http://127.0.0.1:${this.#server.address().port}/v1`; }

  /** From now on turns wait, begun but unfinished, until `release()`: all of them, or those whose prompt `is`. */
  hold(is = () => true) {
    let open;
    const gate = new Promise((resolve) => { open = resolve; });
    this.#held = { gate, open, is };
  }

  /** How many times it was asked with `prompt` as the last word. */
  asked(prompt) { return this.requests.filter((said) => said.at(-1) === prompt).length; }

  release() {
    this.#held?.open();
    this.#held = null;
  }

  async #answer(request, response) {
    let body = '';
    for await (const part of request.setEncoding('utf8')) body += part;
    if (request.method !== 'POST' || !request.url.endsWith('/chat/completions')) {
      response.writeHead(404).end('{}');
      return;
    }
    const asked = JSON.parse(body);
    const prompts = asked.messages.filter((message) => message.role === 'user').map(said).filter((one) => one !== undefined);
    this.requests.push(prompts);
    this.offered.push((asked.tools ?? []).map((tool) => tool.function.name));
    response.once('close', () => { if (!response.writableEnded) this.abandoned.push(prompts.at(-1)); });
    const gate = this.#held?.is(prompts.at(-1)) ? this.#held.gate : undefined;
    const message = reply(asked.messages, prompts);
    const finish_reason = message.tool_calls ? 'tool_calls' : 'stop';
    const usage = { prompt_tokens: 1, completion_tokens: 1, total_tokens: 2 };
    const base = { id: 'x', created: 0, model: asked.model };
    if (!asked.stream) {
      await gate;
      response.writeHead(200, { 'content-type': 'application/json' }).end(JSON.stringify({
        ...base, object: 'chat.completion', choices: [{ index: 0, message, finish_reason }], usage,
      }));
      return;
    }
    const object = 'chat.completion.chunk';
    const chunk = (rest) => response.write(`data: ${JSON.stringify({ ...base, object, ...rest })}\n\n`);
    response.writeHead(200, { 'content-type': 'text/event-stream' });
    chunk({ choices: [{ index: 0, delta: { role: 'assistant', content: '' }, finish_reason: null }] });
    await gate;
    chunk({ choices: [{ index: 0, delta: message, finish_reason: null }] });
    chunk({ choices: [{ index: 0, delta: {}, finish_reason }] });
    chunk({ choices: [], usage });
    response.end('data: [DONE]\n\n');
  }
}
