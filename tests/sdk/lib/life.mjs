// What a test file starts, and what is left of it: nothing.
//
// Every child process and every folder of a test file is made known to one guard, a small shell that waits for this
// process to end in whatever way (exit, crash, timeout, SIGKILL) and then kills the children and removes the folders.
// Tests stop what they start all the same; the guard is for the times they could not.

import { spawn } from 'node:child_process';
import { mkdtempSync, mkdirSync } from 'node:fs';
import { once } from 'node:events';
import { tmpdir } from 'node:os';
import { join } from 'node:path';

const root = mkdtempSync(join(tmpdir(), 'sessile-sdk-'));

// Reads `add PID` and `gone PID` until the pipe closes, which the kernel does for us.
const script = `
trap '' INT TERM HUP
all=
while read -r verb pid; do
  case $verb in
    add) all="$all $pid" ;;
    gone) rest=; for p in $all; do [ "$p" = "$pid" ] || rest="$rest $p"; done; all=$rest ;;
  esac
done
for p in $all; do kill -KILL "$p" 2>/dev/null; done
rm -rf -- "$1" || { sleep 1; rm -rf -- "$1"; }
`;
const guard = spawn('sh', ['-c', script, 'guard', root], { detached: true, stdio: ['pipe', 'ignore', 'ignore'] });
guard.unref();
guard.stdin.unref();

let folders = 0;

/** A new folder under the operating system's temporary one, removed when this process ends. */
export function folder(name) {
  const path = join(root, `${++folders}-${name}`);
  mkdirSync(path);
  return path;
}

/** Starts a process whose output is text to read; `exited` settles with `{ code, signal }`. */
export function child(command, args, options) {
  const made = spawn(command, args, { stdio: ['ignore', 'pipe', 'pipe'], ...options });
  made.stdout.setEncoding('utf8');
  made.stderr.setEncoding('utf8');
  made.exited = new Promise((resolve) => {
    made.once('error', (error) => resolve({ error }));
    made.once('exit', (code, signal) => {
      guard.stdin.write(`gone ${made.pid}\n`);
      resolve({ code, signal });
    });
  });
  if (made.pid) guard.stdin.write(`add ${made.pid}\n`);
  return made;
}

/** Stops a child: SIGTERM, and SIGKILL if that is not obeyed within `grace` ms. True if it obeyed. */
export async function stop(running, grace = 5000) {
  if (running.exitCode !== null || running.signalCode !== null) return true;
  running.kill('SIGTERM');
  running.kill('SIGCONT'); // one that is paused would never see it
  const late = setTimeout(() => running.kill('SIGKILL'), grace);
  const { signal } = await running.exited;
  clearTimeout(late);
  return signal !== 'SIGKILL';
}

/** The first match of `pattern` in what a child prints; rejects with its output if it ends or is silent too long. */
export async function announced(running, pattern, deadline = 15000) {
  let seen = '';
  const gather = (text) => { seen += text; };
  running.stderr.on('data', gather);
  const signal = AbortSignal.timeout(deadline);
  try {
    running.exited.then(() => running.stdout.emit('end'));
    for (;;) {
      const found = pattern.exec(seen);
      if (found) return found;
      const [text] = await Promise.race([once(running.stdout, 'data', { signal }), once(running.stdout, 'end')]);
      if (text === undefined) throw new Error('it ended');
      gather(text);
    }
  } catch (error) {
    throw new Error(`${running.spawnfile} did not say ${pattern}: ${error.message}; it said: ${seen}`);
  } finally {
    running.stderr.off('data', gather);
    running.stdout.resume(); // a full pipe would block the child
    running.stderr.resume();
  }
}
