// A PostgreSQL that a test starts on a free port, in a folder of its own.

import { spawn, spawnSync } from 'node:child_process';
import { once } from 'node:events';
import { chownSync, mkdtempSync, readdirSync, rmSync } from 'node:fs';
import { createServer } from 'node:net';
import { tmpdir } from 'node:os';
import { join } from 'node:path';

import { within } from './server.mjs';

const INSTALLED = '/usr/lib/postgresql';

/** The command line of a program of PostgreSQL. It refuses to run as root, so root runs it as `postgres`. */
function command(program, args) {
  const newest = Math.max(...readdirSync(INSTALLED).map(Number).filter(Boolean));
  const path = join(INSTALLED, String(newest), 'bin', program);
  if (process.getuid() !== 0) return [path, args];
  return ['setpriv', ['--reuid=postgres', '--regid=postgres', '--clear-groups', path, ...args]];
}

function run(program, ...args) {
  return spawnSync(...command(program, args), { encoding: 'utf8' });
}

async function freePort() {
  const server = createServer().listen(0, '127.0.0.1');
  await once(server, 'listening');
  const { port } = server.address();
  server.close();
  await once(server, 'close');
  return port;
}

export class Database {
  #folder = mkdtempSync(join(tmpdir(), 'tgm-session-page-'));
  #process;
  #port;

  static async start() {
    const database = new Database();
    await database.#start();
    return database;
  }

  async #start() {
    if (process.getuid() === 0) {
      const owner = spawnSync('id', ['-u', 'postgres'], { encoding: 'utf8' });
      chownSync(this.#folder, Number(owner.stdout), 0);
    }
    const data = join(this.#folder, 'data');
    const made = run('initdb', '--username=tgm', '--auth=trust', '--no-sync', '--pgdata', data);
    if (made.status !== 0) throw new Error(made.stderr);
    this.#port = await freePort();
    const flags = ['-D', data, '-p', String(this.#port), '-c', 'listen_addresses=127.0.0.1'];
    this.#process = spawn(...command('postgres', [...flags, '-c', 'unix_socket_directories=']), {
      stdio: 'ignore',
    });
    const isReady = () =>
      run('pg_isready', '-q', '-h', '127.0.0.1', '-p', String(this.#port)).status === 0;
    const ready = async () => {
      while (!isReady()) await new Promise((resolve) => setTimeout(resolve, 50));
    };
    await within(ready(), 'PostgreSQL to start');
  }

  /** The URL of a store in it. */
  get url() {
    return `postgres://tgm@127.0.0.1:${this.#port}/postgres`;
  }

  async remove() {
    this.#process.kill('SIGQUIT');
    await once(this.#process, 'exit');
    rmSync(this.#folder, { recursive: true });
  }
}
