// A client on grpc-js with the same commands and behaviour as the client on grpc-go. It sends no borrow id,
// looks only at the code of a keep-alive, sends each return once, and reports usage in unbounded batches. It
// retries each batch for six seconds, unless told otherwise.

import { readFileSync } from 'node:fs';
import { createInterface } from 'node:readline';
import { parseArgs } from 'node:util';

import grpc from '@grpc/grpc-js';
import loader from '@grpc/proto-loader';

/** The longest wait for one answer. A healthy server needs milliseconds. */
const DEADLINE_MS = 15_000;
const REPORT_EVERY_MS = 100;

const { values: options } = parseArgs({
  options: {
    address: { type: 'string' },
    protocol: { type: 'string' },
    'ca-file': { type: 'string' },
    'api-key': { type: 'string' },
    gzip: { type: 'boolean', default: false },
    'keep-alive-ms': { type: 'string', default: '1000' },
    /** How long one batch is retried; then its events are lost. */
    'report-for-ms': { type: 'string', default: '6000' },
  },
});

const files = ['sf/worker/v1/pool.proto', 'sf/gateway/payment/v1/usage.proto'];
const { sf } = grpc.loadPackageDefinition(
  loader.loadSync(files, {
    includeDirs: [options.protocol],
    keepCase: true,
    enums: String,
    longs: String,
    defaults: true,
  }),
);
const credentials = options['ca-file']
  ? grpc.credentials.createSsl(readFileSync(options['ca-file']))
  : grpc.credentials.createInsecure();
const channel = {
  // A server that restarts accepts again soon.
  'grpc.initial_reconnect_backoff_ms': 100,
  'grpc.max_reconnect_backoff_ms': 200,
  ...(options.gzip && {
    'grpc.default_compression_algorithm': grpc.compressionAlgorithms.gzip,
  }),
};
const pool = new sf.worker.v1.WorkerPool(options.address, credentials, channel);
const usage = new sf.gateway.payment.v1.UsageService(options.address, credentials, channel);

/** Calls, and returns the message and its initial metadata, or throws the error of grpc-js. */
function call(client, method, request) {
  return new Promise((resolve, reject) => {
    const metadata = new grpc.Metadata();
    if (options['api-key']) metadata.set('x-api-key', options['api-key']);
    const deadline = new Date(Date.now() + DEADLINE_MS);
    let header = new grpc.Metadata();
    const running = client[method](request, metadata, { deadline }, (error, answer) =>
      error ? reject(error) : resolve({ answer, header }),
    );
    running.on('metadata', (received) => (header = received));
  });
}

const say = (line) => process.stdout.write(`${JSON.stringify(line)}\n`);
/** The names of codes that the client on grpc-go uses. */
const codeName = (code) =>
  grpc.status[code].toLowerCase().replace(/(^|_)(.)/g, (_, __, letter) => letter.toUpperCase());
const refused = (error) => ({ code: codeName(error.code), error: error.details });
const pause = (ms) => new Promise((resolve) => setTimeout(resolve, ms));

/** The held sessions, by key. */
const held = new Map();

function find(key) {
  const session = held.get(key);
  if (!session) throw new Error('no session is held under that key');
  return session;
}

async function borrowSession({ request }) {
  const { answer } = await call(pool, 'BorrowWorker', request);
  if (answer.status === 'borrowed') {
    const key = answer.worker_key;
    const session = { request, workers: new Set(), busy: false };
    session.ticks = setInterval(() => keepAlive(key, session), Number(options['keep-alive-ms']));
    held.set(key, session);
    return { session: key };
  }
  if (answer.status === 'resource_exhausted') {
    const max = answer.worker_state.max_workers;
    // The text contains the maximum twice. It is all that a user sees.
    const error = `Concurrent stream limit exceeded (active sessions: ${max}/${max})`;
    return { code: 'ResourceExhausted', error };
  }
  return { code: 'Internal', error: `status ${answer.status}` };
}

/** Answers "busy" if the caller would retry. After any error its job fails for good. */
async function borrowWorker({ session: key, request, max }) {
  const session = find(key);
  const wanted = { max_worker_for_trace_id: max, ...session.request, ...request };
  const { answer } = await call(pool, 'BorrowWorker', wanted);
  if (answer.status === 'borrowed') {
    session.workers.add(answer.worker_key);
    return { worker: answer.worker_key };
  }
  if (answer.status === 'resource_exhausted') return { busy: answer.worker_state.max_workers };
  return { code: 'Internal', error: `status ${answer.status}` };
}

/** Sends one return and ignores the result. */
async function giveBack(key) {
  const request = { worker_key: key, minimal_worker_life_duration: { seconds: 0 } };
  return (await call(pool, 'ReturnWorker', request)).answer;
}

/** Keeps a session and its workers alive, one after another. */
async function keepAlive(key, session) {
  if (session.busy) return;
  session.busy = true;
  for (const worker_key of [key, ...session.workers]) {
    try {
      // The status of an answer is ignored.
      await call(pool, 'KeepAlive', { worker_key, api_key_id: session.request.api_key_id });
    } catch (error) {
      if ([grpc.status.PERMISSION_DENIED, grpc.status.RESOURCE_EXHAUSTED].includes(error.code)) {
        clearInterval(session.ticks);
        say({ event: 'ended', session: key, ...refused(error) });
        return;
      }
    }
  }
  session.busy = false;
}

let gathered = [];

/** Reports the collected events of all organizations as one batch. */
async function report(events) {
  for (let wait = 50, began = Date.now(); ; wait *= 2) {
    try {
      const { answer, header } = await call(usage, 'Report', { events });
      const skipped = Number(header.get('x-events-skipped')[0] ?? 0);
      return { ...answer, event: 'reported', events: events.length, skipped };
    } catch (error) {
      if (Date.now() - began + wait > Number(options['report-for-ms'])) {
        return { event: 'lost', events: events.length, ...refused(error) };
      }
    }
    await pause(wait);
  }
}

async function meter() {
  for (;;) {
    await pause(REPORT_EVERY_MS);
    if (gathered.length > 0) {
      const events = gathered;
      gathered = [];
      say(await report(events));
    }
  }
}

const commands = {
  'borrow session': borrowSession,
  'borrow worker': borrowWorker,
  'release worker': ({ session, key }) => {
    find(session).workers.delete(key);
    return giveBack(key);
  },
  'release session': ({ session }) => {
    clearInterval(find(session).ticks);
    held.delete(session);
    return giveBack(session);
  },
  report: ({ events }) => {
    gathered.push(...events);
    return {};
  },
  state: async ({ request }) => (await call(pool, 'WorkersState', request)).answer,
};

meter();
createInterface({ input: process.stdin })
  .on('line', async (line) => {
    const command = JSON.parse(line);
    let answer;
    try {
      answer = await commands[command.do](command);
    } catch (error) {
      if (error.code === undefined) throw error;
      answer = refused(error);
    }
    say({ id: command.id, ...answer });
  })
  .on('close', () => process.exit(0));
