// Certificates of an authority of the test's own, made by OpenSSL.

import { execFileSync } from 'node:child_process';
import { writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { folder } from './life.mjs';

const openssl = (...args) => execFileSync('openssl', args, { stdio: ['ignore', 'pipe', 'pipe'] });

export class Papers {
  #folder = folder('papers');

  /** An authority. */
  constructor(name = 'test CA') {
    openssl('req', '-x509', '-newkey', 'ec', '-pkeyopt', 'ec_paramgen_curve:P-256', '-nodes', '-days', '2', '-subj', `/CN=${name}`,
      '-addext', 'basicConstraints=critical,CA:TRUE', '-addext', 'keyUsage=critical,keyCertSign,cRLSign',
      '-keyout', this.path('ca.key'), '-out', this.path('ca.pem'));
  }

  path(name) {
    return join(this.#folder, name);
  }

  /** Signs a certificate for `localhost`, or a client's, as NAME.pem with NAME.key; replaces those of that name. */
  sign(name, use, days = 2) {
    openssl('req', '-newkey', 'ec', '-pkeyopt', 'ec_paramgen_curve:P-256', '-nodes', '-subj', `/CN=${name}`,
      '-keyout', this.path(`${name}.key`), '-out', this.path(`${name}.csr`));
    writeFileSync(this.path('ext'), `subjectAltName=DNS:localhost,IP:127.0.0.1\nextendedKeyUsage=${use}\n`);
    openssl('x509', '-req', '-in', this.path(`${name}.csr`), '-CA', this.path('ca.pem'), '-CAkey', this.path('ca.key'), '-CAcreateserial',
      '-days', `${days}`, '-extfile', this.path('ext'), '-out', this.path(`${name}.pem`));
    return { cert: this.path(`${name}.pem`), key: this.path(`${name}.key`) };
  }
}
