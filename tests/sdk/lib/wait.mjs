// Waiting for states. No test sleeps and none repeats the action it is about: what is polled here only looks.

const pause = (ms) => new Promise((resolve) => { setTimeout(resolve, ms); });

/**
 * Looks until `condition` gives something true, and gives that back. Fails loudly after `deadline` ms, with the last
 * thing seen or thrown: a state that never comes is a failure, never a skip. What is thrown counts as "not yet", unless
 * it says that it is `hopeless`.
 */
export async function until(what, condition, deadline = 10000) {
  const end = performance.now() + deadline;
  let last;
  for (;;) {
    try {
      last = await condition();
      if (last) return last;
    } catch (error) {
      if (error.hopeless) throw error;
      last = error;
    }
    if (performance.now() > end) {
      const seen = last instanceof Error ? (last.stack ?? last.message) : JSON.stringify(last);
      throw new Error(`waited ${deadline} ms in vain until ${what}; last seen: ${seen}`);
    }
    await pause(10);
  }
}

/** Gives what `promise` gives, or fails after `deadline` ms: for what must never hang. */
export async function within(what, promise, deadline = 10000) {
  let timer;
  const late = new Promise((_, reject) => {
    timer = setTimeout(() => reject(new Error(`${what}: nothing within ${deadline} ms`)), deadline);
  });
  try {
    return await Promise.race([promise, late]);
  } finally {
    clearTimeout(timer);
  }
}

/** The error that `promise` ends in; fails if it succeeds, or hangs. */
export async function refusal(what, promise, deadline = 10000) {
  let result;
  try {
    result = await within(what, promise, deadline);
  } catch (error) {
    if (error.message.startsWith(`${what}: nothing within`)) throw error;
    return error;
  }
  throw new Error(`${what}: expected a refusal, got ${JSON.stringify(result)?.slice(0, 500)}`);
}

/** Lets wall-clock time pass. Only where idling is itself the thing under test. */
export const idle = pause;

/** Runs `job` over `items`, at most `width` at a time; results in order, the first failure wins. */
export async function each(items, width, job) {
  const results = [];
  const queue = [...items].entries();
  await Promise.all(Array.from({ length: width }, async () => {
    for (const [at, item] of queue) results[at] = await job(item, at);
  }));
  return results;
}
