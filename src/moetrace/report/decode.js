// The other half of packing.py: the same integers again, from base64, gzip, byte planes and steps.

function unpacked(base64) {
  if (Uint8Array.fromBase64) return Uint8Array.fromBase64(base64);
  const text = atob(base64), bytes = new Uint8Array(text.length);
  for (let i = 0; i < text.length; i++) bytes[i] = text.charCodeAt(i);
  return bytes;
}

async function integers(packed) {
  const stream = new Blob([unpacked(packed.data)]).stream().pipeThrough(new DecompressionStream("gzip"));
  const bytes = new Uint8Array(await new Response(stream).arrayBuffer());
  const { rows, columns, width } = packed;
  const size = rows * columns;
  // doubles, not Int32Array: a count may pass 2**31
  const values = new Float64Array(size);
  if (width < 4) {
    // what most pages hold, in whole numbers of 32 bits: several times faster
    const second = width > 1 ? size : -1, third = width > 2 ? 2 * size : -1;
    for (let i = 0; i < size; i++) {
      let packed = bytes[i];
      if (second > 0) packed |= bytes[second + i] << 8;
      if (third > 0) packed |= bytes[third + i] << 16;
      const step = (packed >>> 1) ^ -(packed & 1);
      values[i] = i < columns ? step : step + values[i - columns];
    }
    return values;
  }
  for (let plane = width - 1; plane >= 0; plane--)
    for (let i = 0, at = plane * size; i < size; i++, at++) values[i] = values[i] * 256 + bytes[at];
  for (let i = 0; i < size; i++) {
    const step = values[i] % 2 ? -(values[i] + 1) / 2 : values[i] / 2;
    values[i] = step + (i < columns ? 0 : values[i - columns]);
  }
  return values;
}

async function reals(packed) {
  return new Float32Array(Int32Array.from(await integers(packed)).buffer);
}

async function tables(metrics) {
  const names = Object.keys(metrics);
  const found = await Promise.all(names.map((name) => reals(metrics[name])));
  return Object.fromEntries(names.map((name, at) => [name, found[at]]));
}

async function openPhase(phase) {
  const [tokens, cells, metrics] =
    await Promise.all([integers(phase.tokens), integers(phase.cells), tables(phase.metrics)]);
  const opened = { ...phase, tokens, cells, metrics };
  for (const key of ["weights", "groups", "routers"])
    if (phase[key]) opened[key] = { ...phase[key], metrics: await tables(phase[key].metrics) };
  return opened;
}
