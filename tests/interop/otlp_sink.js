// SPDX-License-Identifier: Apache-2.0
// A receiver of OTLP/HTTP that shares nothing with ours: Node's TLS and HTTP, and the messages as the OpenTelemetry project
// generates them for JavaScript. Told an address, a certificate, its key and the CA of its clients it says "ready", and then
// prints one JSON document (OTLP's JSON) for each request. NODE_PATH says where the OpenTelemetry packages are.
'use strict';

const fs = require('node:fs');
const https = require('node:https');
const path = require('node:path');
const zlib = require('node:zlib');

const generated = '@opentelemetry/otlp-transformer/build/src/generated/root.js';
const { opentelemetry } = require(path.join(process.env.NODE_PATH, generated));
const { ExportMetricsServiceRequest, ExportMetricsServiceResponse } = opentelemetry.proto.collector.metrics.v1;

const [address, certificate, key, ca] = process.argv.slice(2);
const [host, port] = address.split(':');
const tls = { cert: fs.readFileSync(certificate), key: fs.readFileSync(key), ca: fs.readFileSync(ca) };

https
  .createServer({ ...tls, requestCert: true, rejectUnauthorized: true }, (request, response) => {
    const parts = [];
    request.on('data', (part) => parts.push(part));
    request.on('end', () => {
      const whole = Buffer.concat(parts);
      const body = request.headers['content-encoding'] === 'gzip' ? zlib.gunzipSync(whole) : whole;
      const message = ExportMetricsServiceRequest.decode(body);
      const told = ExportMetricsServiceRequest.toObject(message, { longs: String, enums: Number, bytes: String });
      process.stdout.write(`${JSON.stringify(told)}\n`);
      response.writeHead(200, { 'Content-Type': 'application/x-protobuf' });
      response.end(ExportMetricsServiceResponse.encode({}).finish());
    });
  })
  .on('tlsClientError', (error) => process.stdout.write(`${JSON.stringify({ refused: String(error) })}\n`))
  .listen(Number(port), host, () => process.stdout.write('ready\n'));
