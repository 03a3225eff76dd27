const lab = window.swarmkv = formulas(constants);
const { depths, links, speeds, looks, measured, race, races, models, types } = constants;
const NAIVE = looks.naive[0], OURS = '#E69F00';
const of = id => document.getElementById(id);
const MOST_AGENTS = Number(of('agents').max);

// -- numbers as text

const count = number => number.toLocaleString('en-US', { maximumFractionDigits: 0 });
const short = number => number.toLocaleString('en-US', { maximumSignificantDigits: 3 });
const scaled = (number, units) => {
  const [size, unit] = units.find(([size]) => number >= size) || units.at(-1);
  return `${short(number / size)}\u00a0${unit}`;
};
const size = bytes => scaled(bytes, [[1e12, 'TB'], [1e9, 'GB'], [1e6, 'MB'], [1e3, 'kB'], [1, 'bytes']]);
const seconds = s => scaled(s, [[1, 's'], [1e-3, 'ms'], [1e-6, 'µs']]);
const link = mbit => `${mbit < 1000 ? `${mbit} Mbit` : `${mbit / 1000} Gbit`} per second`;

// -- the pieces of a panel

const legend = (id, entries) => {
  of(id).innerHTML = entries.map(([name, colour, shape]) =>
    `<li><svg width="26" height="12" viewBox="-13 -6 26 12" aria-hidden="true"><path class="line" stroke="${colour}"
      d="M-13 0H13"/>${shape ? symbol(shape, colour) : ''}</svg> ${name}</li>`).join('');
};
const table = (id, rows) => {
  of(id).innerHTML = rows.map(([first, ...rest]) =>
    `<tr><th scope="row">${first}</th>${rest.map(cell => `<td>${cell}</td>`).join('')}</tr>`).join('');
};
const around = values => {  // whole decades around all values
  const low = Math.floor(Math.log10(Math.min(...values))), high = Math.ceil(Math.log10(Math.max(...values)));
  return [10 ** low, 10 ** Math.max(high, low + 1)];
};
const geometric = (from, to, n = 60) => [...Array(n + 1).keys()].map(i => from * (to / from) ** (i / n));

// -- the panels

const raced = () => {
  drawLanes(of('race-chart'), Object.entries(race.runs).map(([name, { spans }]) => ({ name, spans })), race.looks);
  of('race-legend').innerHTML = [...new Map(Object.values(race.looks))].map(([label, colour]) =>
    `<li><svg width="14" height="12" aria-hidden="true"><rect width="14" height="12" fill="${colour}"/></svg> ${label}</li>`).join('');
  table('race-numbers', Object.entries(race.runs).map(([name, { endToEnd, times: { low, median, high } }]) =>
    [name, seconds(endToEnd), `${median.toFixed(2)}x (${low.toFixed(2)} to ${high.toFixed(2)})`]));
  const { naive, shared } = race.runs;
  of('race-words').textContent = `${race.agents} agents over ${count(race.tokens)} tokens, ${race.rounds} rounds: naive ends after `
    + `${seconds(naive.endToEnd)}, shared after ${seconds(shared.endToEnd)} (measured).`;
};

const latency = ({ tokens, agents, metric }) => {
  const names = Object.keys(looks), at = n => measured.filter(row => row[2] === n);
  const [first, last] = [Math.min, Math.max].map(most => most(...measured.map(row => row[1])));
  const mostAgents = Math.max(...measured.map(row => row[2]));
  const column = metric === 'ttft' ? 3 : 4, deepest = Math.max(8192, tokens);
  const curve = (name, from, to) => geometric(from, to).map(d => [d, lab.predict(name, d, agents)[metric] / 1e3]);
  const lines = names.flatMap(name => [
    { values: curve(name, depths[0], first), dashed: true },
    { values: curve(name, first, last), dashed: agents > mostAgents },
    { values: curve(name, last, Math.max(deepest, last)), dashed: true },
  ].map(line => ({ ...line, colour: looks[name][0] })));
  const points = at(agents).map(([name, d, , ...times]) => ({
    value: [d, times[column - 3] / 1e3], colour: looks[name][0], shape: looks[name][1],
    title: `${name}, ${count(d)} tokens: ${seconds(times[column - 3] / 1e3)} (measured)`,
  }));
  const y = { log: true, domain: around([...lines.flatMap(line => line.values), ...points.map(p => p.value)]
    .map(value => value[1])), format: seconds };
  draw(of('latency-chart'), {
    x: { title: 'document, tokens', log: true, domain: [depths[0], Math.max(deepest, last)], format: count }, y,
    lines, points, at: tokens,
  });
  legend('latency-legend', names.map(name => [name, ...looks[name]]));
  const predicted = Object.fromEntries(names.map(name => [name, lab.predict(name, tokens, agents)]));
  const here = Object.fromEntries(at(agents).filter(row => row[1] === tokens).map(row => [row[0], row]));
  table('latency-numbers', names.map(name => {
    const { ttft, endToEnd } = predicted[name], row = here[name];
    return [name, seconds(ttft / 1e3), row ? seconds(row[3] / 1e3) : 'none', seconds(endToEnd / 1e3),
      row ? seconds(row[4] / 1e3) : 'none', `${(predicted.naive.endToEnd / endToEnd).toFixed(2)}x`];
  }));
  const beyond = tokens < first || tokens > last || agents > mostAgents;
  const { naive, shared } = predicted;
  of('latency-words').textContent = `${count(tokens)} tokens, ${agents} agent${agents > 1 ? 's' : ''}: naive ends after `
    + `${seconds(naive.endToEnd / 1e3)}, shared after ${seconds(shared.endToEnd / 1e3)} (predicted`
    + `${beyond ? `; measured were ${count(first)} to ${count(last)} tokens and 1 to ${mostAgents} agents` : ''}).`;
};

const memory = ({ tokens, agents, model, type }) => {
  const all = [...Array(MOST_AGENTS).keys()].map(i => [i + 1, lab.agentsBytes(model, tokens, i + 1, type)]);
  const now = lab.agentsBytes(model, tokens, agents, type), snapshot = lab.snapshotBytes(model, tokens, type);
  const curve = (layout, colour) => ({ values: all.map(([n, bytes]) => [n, bytes[layout]]), colour });
  const point = (layout, colour, shape) => ({
    value: [agents, now[layout]], colour, shape, title: `${layout}: ${size(now[layout])} (predicted)`,
  });
  draw(of('memory-chart'), {
    x: { title: 'agents', domain: [1, MOST_AGENTS], format: count },
    y: { domain: [0, Math.max(all.at(-1)[1].copied, all.at(-1)[1].shared)], format: bytes => bytes ? size(bytes) : '0' },
    lines: [curve('copied', NAIVE), curve('shared', OURS)],
    points: [point('copied', NAIVE, 'o'), point('shared', OURS, '^')], at: agents,
  });
  legend('memory-legend', [['a copy per agent', NAIVE, 'o'], ['one shared document', OURS, '^']]);
  table('memory-numbers', [
    ['snapshot of the document', snapshot], ['all agents, a copy for each', now.copied],
    ['all agents, one shared document', now.shared],
  ].map(([name, bytes]) => [name, count(bytes), size(bytes)]));
  const trained = models[model].trained;
  of('memory-words').textContent = `${agents} agent${agents > 1 ? 's' : ''} over ${count(tokens)} tokens: `
    + `${size(now.copied)} with copies, ${size(now.shared)} with a shared document (predicted).`
    + (tokens > trained ? ` ${model} was trained for ${count(trained)} tokens only.` : '');
};

const shipping = ({ tokens, model, type, mbit, speed }) => {
  const perSecond = speed.perSecond || 1e3 * tokens / lab.prefillMs(tokens);
  const ship = bytesPerSecond => lab.ship(model, tokens, type, bytesPerSecond, perSecond);
  const now = ship(mbit / 8 * 1e6), ways = { load: OURS, compute: NAIVE };
  const names = { load: 'send the snapshot', compute: 'compute it again' };
  const shapes = { load: '^', compute: 'o' };
  const sent = model === races.model && type === races.type && tokens === races.tokens
    && speed.perSecond === races.perSecond;
  const rates = geometric(links[0], links.at(-1)).map(each => [each, ship(each / 8 * 1e6)]);
  const lines = Object.entries(ways).map(([way, colour]) => ({ values: rates.map(([m, s]) => [m, s[way]]), colour }));
  const points = sent ? races.points.flatMap(([bandwidth, ...times]) => Object.keys(ways).map((way, i) => ({
    value: [bandwidth * 8 / 1e6, times[i]], colour: ways[way], shape: shapes[way],
    title: `${names[way]}: ${seconds(times[i])} (measured)`,
  }))) : [];
  draw(of('shipping-chart'), {
    x: { title: 'link, Mbit per second', log: true, domain: [links[0], links.at(-1)], format: count },
    y: { log: true, domain: around([...lines.flatMap(line => line.values), ...points.map(p => p.value)]
      .map(value => value[1])), format: seconds },
    lines, points, at: mbit,
  });
  legend('shipping-legend', Object.keys(ways).map(way => [names[way], ways[way], sent && shapes[way]]));
  table('shipping-numbers', [
    ['bytes to send', `${count(now.bytes)} bytes`, 'predicted'],
    ['prefill', `${short(perSecond)} tokens per second`, [speed.kind, speed.where].filter(Boolean).join(': ')],
    ...Object.keys(ways).map(way => [names[way], seconds(now[way]), 'predicted']),
    ['break-even link, S/T', `${short(now.breakEven * 8 / 1e6)} Mbit per second`, 'predicted'],
  ]);
  const [load, compute] = [seconds(now.load), seconds(now.compute)];
  of('shipping-words').textContent = `Over ${link(mbit)}, ${now.load < now.compute
    ? `send the cache: ${load}, against ${compute} to compute it again`
    : `compute the cache again: ${compute}, against ${load} to send it`} (predicted${speed.model ? ''
    : `; ${count(speed.perSecond)} tokens per second are assumed`}).`;
};

// -- the controls

const option = (value, text) => `<option value="${value}">${text}</option>`;
of('model').innerHTML = Object.keys(models).map(name => option(name, name)).join('');
of('type').innerHTML = Object.keys(types).map(name => option(name, name)).join('');
const start = { tokens: depths.indexOf(3501), agents: 4, model: 'qwen2.5-7b', type: 'f16', mbit: links.indexOf(1000) };
of('tokens').max = depths.length - 1;
of('mbit').max = links.length - 1;
Object.entries(start).forEach(([id, value]) => { of(id).value = value; });

// A prefill is a model's: those that are known of the chosen one, the first of them chosen, and what may be assumed.
const offerSpeeds = () => {
  const kinds = {};
  speeds.forEach(({ kind, model, perSecond, where }, i) => {
    if (model && model !== of('model').value) return;
    const text = [perSecond ? `${short(perSecond)} per second` : 'at each length', where].filter(Boolean).join(', ');
    (kinds[kind] ||= []).push(option(i, text));
  });
  of('speed').innerHTML = Object.entries(kinds).map(([kind, options]) =>
    `<optgroup label="${kind}">${options.join('')}</optgroup>`).join('');
  const known = speeds.findIndex(speed => speed.model === of('model').value);
  of('speed').value = known < 0 ? speeds.findIndex(speed => !speed.model && speed.perSecond === 1000) : known;
};
offerSpeeds();
of('model').addEventListener('input', offerSpeeds);  // before the page follows

const say = (id, text) => {
  of(`${id}-value`).textContent = text;
  of(id).setAttribute('aria-valuetext', text);
};
const follow = () => {
  const now = { tokens: depths[of('tokens').value], agents: Number(of('agents').value), model: of('model').value,
    type: of('type').value, mbit: links[of('mbit').value], speed: speeds[of('speed').value],
    metric: of('metric').value };
  say('tokens', `${count(now.tokens)} tokens`);
  say('agents', `${now.agents} agent${now.agents > 1 ? 's' : ''}`);
  say('mbit', link(now.mbit));
  [raced, latency, memory, shipping].forEach(panel => panel(now));
};

// Read out what has changed once the reader has stopped: a slider that moves would flood a screen reader.
let told = [], pause;
const words = () => ['latency', 'memory', 'shipping'].map(id => of(`${id}-words`).textContent);
const tell = () => {
  of('said').textContent = words().filter((text, i) => text !== told[i]).join(' ');
  told = words();
};
document.addEventListener('input', () => {
  follow();
  clearTimeout(pause);
  pause = setTimeout(tell, 1000);
});
follow();
told = words();
new ResizeObserver(follow).observe(of('latency-chart'));
