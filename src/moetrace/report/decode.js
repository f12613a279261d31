// The other half of packing.py: the same integers again, from base64, gzip, byte planes and steps.

async function integers(packed) {
  const text = atob(packed.data);
  const squeezed = new Uint8Array(text.length);
  for (let i = 0; i < text.length; i++) squeezed[i] = text.charCodeAt(i);
  const stream = new Blob([squeezed]).stream().pipeThrough(new DecompressionStream("gzip"));
  const bytes = new Uint8Array(await new Response(stream).arrayBuffer());
  const { rows, columns, width } = packed;
  const size = rows * columns;
  // doubles, not Int32Array: a count may pass 2**31
  const values = new Float64Array(size);
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

async function openPhase(phase) {
  const names = Object.keys(phase.metrics);
  const [tokens, cells, ...metrics] = await Promise.all([
    integers(phase.tokens), integers(phase.cells), ...names.map((name) => reals(phase.metrics[name])),
  ]);
  return { ...phase, tokens, cells, metrics: Object.fromEntries(names.map((n, i) => [n, metrics[i]])) };
}
