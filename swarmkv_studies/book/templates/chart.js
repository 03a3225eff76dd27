// A picture of lines and points on two axes, as SVG. A table beside it has the numbers.
const SHAPES = {
  o: 'M-4.5 0a4.5 4.5 0 1 0 9 0a4.5 4.5 0 1 0-9 0', s: 'M-4-4H4V4H-4Z', D: 'M0-5.5L5.5 0L0 5.5L-5.5 0Z',
  '^': 'M0-5L5 4.5H-5Z', v: 'M0 5L5-4.5H-5Z',
};
const symbol = (shape, colour) => `<path class="point" d="${SHAPES[shape]}" fill="${colour}"/>`;

// Round numbers in the domain, at most so many.
const ticks = ({ domain: [low, high], log }, most) => {
  if (!log) {
    const step = [1, 2, 4, 5, 8, 10].flatMap(n => [...Array(15).keys()].map(e => n * 10 ** e)).sort((a, b) => a - b)
      .find(each => (high - low) / each <= most);
    return [...Array(Math.floor(high / step) + 1).keys()].map(i => i * step).filter(value => value >= low);
  }
  const decades = [...Array(24).keys()].map(e => e - 9);
  return [[[1, 2, 5], 1], [[1], 1], [[1], 2], [[1], 3]]
    .map(([digits, apart]) => decades.filter(e => e % apart === 0).flatMap(e => digits.map(digit => digit * 10 ** e))
      .filter(value => value >= low && value <= high))
    .find(found => found.length <= most) || [];
};

// Runs under each other on one time axis in seconds, a lane for each of their agents. A table beside it has the numbers.
const drawLanes = (svg, runs, looks) => {
  const width = svg.clientWidth, left = 78, right = 14, lane = 17, head = 24, bottom = 44;
  if (width <= left + right) return;  // it is not laid out
  const last = Math.max(...runs.flatMap(run => run.spans.map(span => span[3])));
  const px = value => left + (width - left - right) * value / last;
  let y = 0;
  const drawn = runs.map(({ name, spans }) => {
    const agents = [...new Set(spans.map(([agent]) => agent))].sort((a, b) => (b === 'prefix') - (a === 'prefix'));
    const top = y + head;
    y = top + agents.length * lane;
    return `<text class="run" x="${left}" y="${top - 6}">${name}</text>`
      + agents.map((agent, i) => `<text x="${left - 8}" y="${top + (i + .5) * lane}" dy=".35em"
        text-anchor="end">${agent}</text>`).join('')
      + spans.map(([agent, phase, from, to]) => `<rect x="${px(from)}" width="${Math.max(px(to) - px(from), 0)}"
        y="${top + agents.indexOf(agent) * lane + 2}" height="${lane - 4}" fill="${looks[phase][1]}"><title>${name}, ${agent}:
        ${looks[phase][0]}, ${(to - from).toPrecision(2)} s</title></rect>`).join('');
  });
  const seconds = ticks({ domain: [0, last] }, (width - left) / 75);
  svg.style.height = `${y + bottom}px`;
  svg.setAttribute('viewBox', `0 0 ${width} ${y + bottom}`);
  svg.innerHTML = [
    ...seconds.map(v => `<path class="grid" d="M${px(v)} 0V${y}"/>
      <text x="${px(v)}" y="${y + 18}" text-anchor="middle">${v}</text>`),
    `<text x="${(left + width - right) / 2}" y="${y + 38}" text-anchor="middle">seconds since the call (measured)</text>`,
    ...drawn,
  ].join('');
};

const draw = (svg, { x, y, lines, points, at }) => {
  const width = svg.clientWidth, height = svg.clientHeight, left = 66, right = 14, top = 10, bottom = 44;
  if (width <= left + right) return;  // it is not laid out
  const scale = ({ domain: [a, b], log }, from, to) => {
    const f = log ? Math.log : Number;
    return value => from + (to - from) * (f(value) - f(a)) / (f(b) - f(a));
  };
  const px = scale(x, left, width - right), py = scale(y, height - bottom, top);
  const xs = ticks(x, (width - left) / 75), ys = ticks(y, 7);
  svg.setAttribute('viewBox', `0 0 ${width} ${height}`);
  svg.innerHTML = [
    ...ys.map(v => `<path class="grid" d="M${left} ${py(v)}H${width - right}"/>
      <text x="${left - 8}" y="${py(v)}" dy=".35em" text-anchor="end">${y.format(v)}</text>`),
    ...xs.map(v => `<path class="grid" d="M${px(v)} ${top}V${height - bottom}"/>
      <text x="${px(v)}" y="${height - bottom + 18}" text-anchor="middle">${x.format(v)}</text>`),
    `<text x="${(left + width - right) / 2}" y="${height - 6}" text-anchor="middle">${x.title}</text>`,
    `<path class="at" d="M${px(at)} ${top}V${height - bottom}"/>`,
    ...lines.map(({ values, colour, dashed }) =>
      `<path class="line${dashed ? ' dashed' : ''}" stroke="${colour}" d="M${values.map(([a, b]) =>
        `${px(a).toFixed(1)} ${py(b).toFixed(1)}`).join('L')}"/>`),
    ...points.map(({ value: [a, b], colour, shape, title }) =>
      `<g transform="translate(${px(a)} ${py(b)})"><title>${title}</title>${symbol(shape, colour)}</g>`),
  ].join('');
};
