// Runs an ONNX file by onnxruntime-web, in Node as in a browser, for the server of verify.py.
//
// A message is tensors: their names, types and sizes as a line of JSON, then the bytes of each.

const ARRAYS = {
  float32: Float32Array, float64: Float64Array, float16: Uint16Array, bool: Uint8Array,
  int8: Int8Array, uint8: Uint8Array, int16: Int16Array, uint16: Uint16Array,
  int32: Int32Array, uint32: Uint32Array, int64: BigInt64Array, uint64: BigUint64Array,
};

function unpack(ort, message) {
  const bytes = new Uint8Array(message);
  let start = bytes.indexOf(10) + 1;
  const tensors = JSON.parse(new TextDecoder().decode(bytes.subarray(0, start)));
  return Object.fromEntries(tensors.map(({ name, type, dims, size }) => {
    const data = new ARRAYS[type](message.slice(start, (start += size))); // A copy is aligned.
    return [name, new ort.Tensor(type, data, dims)];
  }));
}

function pack(tensors) {
  const told = [], parts = [];
  for (const [name, { type, dims, data }] of Object.entries(tensors)) {
    told.push({ name, type, dims, size: data.byteLength });
    parts.push(new Uint8Array(data.buffer, data.byteOffset, data.byteLength));
  }
  return new Blob([`${JSON.stringify(told)}\n`, ...parts]);
}

// `load` imports onnxruntime-web; `base` is the address of the server. Ends when that has no more.
export async function serve(load, base) {
  const send = (path, body) => fetch(`${base}/${path}`, { method: "POST", body });
  try {
    const ort = await load();
    ort.env.wasm.numThreads = 1; // As in a page that is not isolated from others.
    const file = new Uint8Array(await (await fetch(`${base}/artifact`)).arrayBuffer());
    const session = await ort.InferenceSession.create(file, { executionProviders: ["wasm"] });
    for (;;) {
      const request = await fetch(`${base}/batch`);
      if (request.status === 204) return;
      await send("outputs", pack(await session.run(unpack(ort, await request.arrayBuffer()))));
    }
  } catch (error) {
    await send("error", String(error));
  }
}
