// Real tgm-session processes: servers, and clients that hold sessions.

import { spawn } from 'node:child_process';
import { once } from 'node:events';
import { closeSync, mkdtempSync, openSync, readFileSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { createInterface } from 'node:readline';
import { fileURLToPath } from 'node:url';

import grpc from '@grpc/grpc-js';
import loader from '@grpc/proto-loader';

const BINARY = process.env.TGM_SESSION_BINARY;
const PROTO = fileURLToPath(new URL('../../crates/wire/proto', import.meta.url));
/** The longest wait for one answer, for a start and for a stop. A healthy server needs milliseconds. */
export const DEADLINE = 20_000;

const running = new Set();
process.on('exit', () => running.forEach((child) => child.kill('SIGKILL')));

/** Waits for a promise within the deadline, and names it if it is late. */
export function within(promise, what) {
  let timer;
  const late = new Promise((_, reject) => {
    timer = setTimeout(() => reject(new Error(`waited too long: ${what}`)), DEADLINE);
  });
  return Promise.race([promise, late]).finally(() => clearTimeout(timer));
}

/** Starts the binary; its lines on standard output are JSON events. */
function start(args, options) {
  const child = spawn(BINARY, args, options);
  running.add(child);
  const exited = once(child, 'exit').then(([code]) => {
    running.delete(child);
    return code;
  });
  const lines = createInterface({ input: child.stdout })[Symbol.asyncIterator]();
  /** The next event that `matches`; fails when the process ends without one. */
  const event = async (matches) => {
    for (;;) {
      const { value, done } = await lines.next();
      if (done) throw new Error('the process ended before it said that');
      const said = JSON.parse(value);
      if (matches(said)) return said;
    }
  };
  return { child, exited, event };
}

/** A server on free ports, with a durable store in a temporary folder unless `flags` name another. */
export class Server {
  #folder = mkdtempSync(join(tmpdir(), 'tgm-session-page-'));
  #flags;
  #process = null;
  #listen = ['127.0.0.1:0', '127.0.0.1:0'];

  static async start(policy, ...flags) {
    const server = new Server();
    server.#flags = flags;
    server.setPolicy(policy);
    await server.start();
    return server;
  }

  /** Writes the policy file. A running server notices the change. */
  setPolicy(policy) {
    writeFileSync(join(this.#folder, 'policy.toml'), policy);
  }

  /** Starts the server, on its previous store and ports, and waits until it accepts. */
  async start() {
    const log = openSync(join(this.#folder, 'log'), 'a');
    const args = ['serve', '--format', 'json', '--config', join(this.#folder, 'policy.toml')];
    if (!this.#flags.includes('--store'))
      args.push('--store', `file:${join(this.#folder, 'leases.redb')}`);
    args.push('--listen', this.#listen[0], '--admin-listen', this.#listen[1], ...this.#flags);
    this.#process = start(args, { stdio: ['ignore', 'pipe', log] });
    closeSync(log);
    try {
      const ready = await within(
        this.#process.event(({ event }) => event === 'ready'),
        'the server to accept',
      );
      this.#listen = [ready.grpc, ready.admin];
    } catch (error) {
      throw new Error(`${error.message}\n${this.log()}`, { cause: error });
    }
  }

  log() {
    return readFileSync(join(this.#folder, 'log'), 'utf8');
  }

  /** The URL of the page. */
  page(hash = '') {
    return `http://${this.#listen[1]}/${hash}`;
  }

  get grpc() {
    return this.#listen[0];
  }

  get url() {
    return `tgm://${this.grpc}?plaintext=true&request-keep-alive-delay=5s`;
  }

  async stop(signal = 'SIGTERM') {
    this.#process.child.kill(signal);
    return within(this.#process.exited, 'the server to stop');
  }

  /** Stops the server for good and removes its folder. */
  async remove() {
    if (running.has(this.#process.child)) await this.stop('SIGKILL');
    rmSync(this.#folder, { recursive: true });
  }

  /** Borrows a session with the command `tgm-session borrow`, and waits until it is granted. */
  async borrow(organization, ...flags) {
    const held = new Borrow(this.url, organization, flags);
    await within(
      held.event(({ event, kind }) => event === 'granted' && kind === 'session'),
      'the grant',
    );
    return held;
  }

  /** Runs `tgm-session borrow`, expects a refusal, and returns the exit code. */
  async refused(organization, ...flags) {
    return within(new Borrow(this.url, organization, flags).exited, 'the refusal');
  }
}

/** A `tgm-session borrow` process. */
class Borrow {
  constructor(url, organization, flags) {
    const args = ['borrow', url, '--format', 'json', '--organization', organization, ...flags];
    Object.assign(this, start(args, { stdio: ['ignore', 'pipe', 'ignore'] }));
  }

  /** Returns the session, and waits until the process has ended. */
  async release() {
    if (running.has(this.child)) this.child.kill('SIGINT');
    return within(this.exited, 'the return of the session');
  }
}

/** Calls the server with grpc-js: many sessions at once, and usage. */
export class Caller {
  #pool;
  #usage;

  constructor(server) {
    const open = { includeDirs: [PROTO], keepCase: true, enums: String };
    const files = ['sf/worker/v1/pool.proto', 'sf/gateway/payment/v1/usage.proto'];
    const { sf } = grpc.loadPackageDefinition(loader.loadSync(files, open));
    const credentials = grpc.credentials.createInsecure();
    this.#pool = new sf.worker.v1.WorkerPool(server.grpc, credentials);
    this.#usage = new sf.gateway.payment.v1.UsageService(server.grpc, credentials);
  }

  #call(client, method, request) {
    return new Promise((resolve, reject) => {
      const deadline = new Date(Date.now() + DEADLINE);
      client[method](request, { deadline }, (error, answer) =>
        error ? reject(error) : resolve(answer),
      );
    });
  }

  /** Borrows, and returns the message, refused or not. With `workers` it borrows a worker of the trace. */
  borrow({ organization, service = 't1r', api_key = '', trace = '', workers = 0 }) {
    const request = { service, organization_id: organization, api_key_id: api_key, trace_id: trace };
    return this.#call(this.#pool, 'BorrowWorker', { ...request, max_worker_for_trace_id: workers });
  }

  /** Borrows many, `atOnce` at a time. */
  async borrowAll(requests, atOnce = 256) {
    const left = requests[Symbol.iterator]();
    const one = async () => {
      for (const request of left) await this.borrow(request);
    };
    await Promise.all(Array.from({ length: atOnce }, one));
  }

  giveBack(key) {
    return this.#call(this.#pool, 'ReturnWorker', { worker_key: key });
  }

  /** Reports usage of a metric by an organization. */
  report(organization, metric, value) {
    const events = [{ organization_id: organization, metrics: [{ key: metric, value }] }];
    return this.#call(this.#usage, 'Report', { events });
  }

  close() {
    this.#pool.close();
    this.#usage.close();
  }
}
