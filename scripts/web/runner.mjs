// Runs an ONNX file by onnxruntime-web: node runner.mjs FOLDER FILE, with its packages in FOLDER.
//
// Each line of standard input is a batch: the tensors by name, {"type", "dims", "file"}, with their
// elements in a file; the outputs are told, and written beside the inputs, in the same way.
import { readFileSync, writeFileSync } from "node:fs";
import { createRequire } from "node:module";
import { dirname, join } from "node:path";
import { createInterface } from "node:readline";

const [folder, file] = process.argv.slice(2);
const ort = createRequire(join(folder, "package.json"))("onnxruntime-web");
ort.env.wasm.numThreads = 1; // As in a page that is not isolated from others.

const ARRAYS = {
  float32: Float32Array, float64: Float64Array, float16: Uint16Array, bool: Uint8Array,
  int8: Int8Array, uint8: Uint8Array, int16: Int16Array, uint16: Uint16Array,
  int32: Int32Array, uint32: Uint32Array, int64: BigInt64Array, uint64: BigUint64Array,
};

function read({ type, dims, file }) {
  const bytes = Uint8Array.from(readFileSync(file)); // Its own buffer, and so aligned.
  return new ort.Tensor(type, new ARRAYS[type](bytes.buffer), dims);
}

const session = await ort.InferenceSession.create(readFileSync(file), { executionProviders: ["wasm"] });
for await (const line of createInterface({ input: process.stdin })) {
  const { target, inputs } = JSON.parse(line);
  const feeds = Object.entries(inputs).map(([name, described]) => [name, read(described)]);
  const outputs = Object.entries(await session.run(Object.fromEntries(feeds)));
  const written = outputs.map(([name, { type, dims, data }], number) => {
    const file = join(target, `output-${number}`);
    writeFileSync(file, new Uint8Array(data.buffer, data.byteOffset, data.byteLength));
    return [name, { type, dims, file }];
  });
  process.stdout.write(`${JSON.stringify(Object.fromEntries(written))}\n`);
}
