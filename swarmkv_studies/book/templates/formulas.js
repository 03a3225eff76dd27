// The formulas of swarmkv_lab/sizing, the cost model and shipping; tests/test_browser_book.py compares the results.
const formulas = constants => {
  const { cost, models, types, step, batch, tail } = constants;
  const dot = (a, b) => a.reduce((sum, each, i) => sum + each * b[i], 0);
  const pad = cells => Math.ceil(cells / step) * step;
  const cellBytes = ({ k, v }, type) => (k + v) / types[type][0] * types[type][1];

  // Bytes of a document's snapshot (KVGeometry.snapshot_bytes).
  const snapshotBytes = (model, tokens, type) => models[model].caches.reduce((total, cache, windowed) => {
    const cells = windowed ? Math.min(tokens, models[model].window) : tokens;
    return total + 8 + (cells ? 8 + 12 * cache.tensors + cells * (12 + cellBytes(cache, type)) : 0);
  }, 8);

  // Bytes of a context (KVGeometry.cache_bytes with a unified cache).
  const contextBytes = (model, cells, type, sequences = 1) => {
    const size = pad(cells);
    const windowed = pad(Math.min(size, models[model].window * sequences + Math.min(size, batch)));
    return models[model].caches.reduce((total, cache, i) => total + (i ? windowed : size) * cellBytes(cache, type), 0);
  };

  // Bytes of all agents' caches (kv_sizing.memory.agents_bytes).
  const agentsBytes = (model, tokens, agents, type) => ({
    copied: agents * contextBytes(model, tokens + tail, type),
    shared: contextBytes(model, tokens + agents * tail, type, 1 + agents),
  });

  const prefillMs = tokens => dot(cost.prefill, [1, tokens, tokens * tokens]);

  // Times in ms (CostModel.predict).
  const predict = (strategy, tokens, agents) => {
    const parts = cost.parts[strategy], naive = strategy === 'naive', packed = cost.packed.includes(strategy);
    const time = part => dot(parts[part], parts[part].length === 3 ? [1, agents, tokens * agents] : [1, tokens]);
    const prefill = prefillMs(tokens);
    const activation = time('activation') + (naive ? prefill : 0);
    const after = time('branch') + cost.sample + time('answer');
    const once = naive ? 0 : prefill + time('capture');
    const endToEnd = once + agents * activation + (packed ? after : agents * after) + time('rest');
    return { ttft: endToEnd - time('answer'), endToEnd };
  };

  // Times in s, to a machine that has nothing yet (shipping.break_even_bandwidth).
  const ship = (model, tokens, type, bytesPerSecond, tokensPerSecond) => {
    const bytes = snapshotBytes(model, tokens, type), compute = tokens / tokensPerSecond, load = bytes / bytesPerSecond;
    return { bytes, compute, load, breakEven: bytes / compute };
  };

  return { constants, snapshotBytes, contextBytes, agentsBytes, prefillMs, predict, ship };
};
