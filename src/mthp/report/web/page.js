// SPDX-License-Identifier: GPL-2.0-or-later
'use strict';
const all = (what, where = document) => [...where.querySelectorAll(what)];

const button = (text, kind, act) => {
  const made = document.createElement('button');
  made.type = 'button';
  made.textContent = text;
  if (kind) made.className = kind;
  made.onclick = act;
  return made;
};

// --- lines to copy, dots to look at, tables to sort -------------------------------------------

for (const pre of all('pre')) {
  const copy = button('Copy', 'copy', () => {
    getSelection().selectAllChildren(pre);
    copy.textContent = document.execCommand('copy') ? 'Copied' : 'Selected';
  });
  pre.before(copy);
}

for (const plot of all('figure.plot')) {
  const read = plot.querySelector('output');
  const dots = all('.dot', plot);
  dots.forEach((dot, k) => {
    dot.onmouseenter = dot.onfocus = dot.onclick = () => {
      read.textContent = dot.getAttribute('aria-label');
    };
    dot.onkeydown = event => {
      const by = { ArrowRight: 1, ArrowDown: 1, ArrowLeft: -1, ArrowUp: -1 }[event.key];
      if (by) {
        event.preventDefault();
        dots[(k + by + dots.length) % dots.length].focus();
      }
    };
  });
}

for (const table of all('table.sorts')) {
  all('thead th[aria-sort]', table).forEach((th, _, ths) => {
    const sort = () => {
      const up = th.ariaSort !== 'ascending';
      ths.forEach(each => { each.ariaSort = 'none'; });
      th.ariaSort = up ? 'ascending' : 'descending';
      const key = row => Number(row.cells[th.cellIndex].dataset.v);
      const rows = [...table.tBodies[0].rows];
      table.tBodies[0].append(...rows.sort((a, b) => (up ? 1 : -1) * (key(a) - key(b))));
    };
    const inside = button('', '', sort);
    inside.append(...th.childNodes);
    th.append(inside);
  });
}

// --- the map ------------------------------------------------------------------------------------

const STEP = 10;
const SIDE = 9;
const data = JSON.parse(document.getElementById('data').textContent);

const bytesText = bytes => {
  const names = ['B', 'KiB', 'MiB', 'GiB', 'TiB'];
  let k = 0;
  while (bytes >= 1024 && k < 4) {
    bytes /= 1024;
    k += 1;
  }
  return `${bytes >= 100 || Number.isInteger(bytes) ? Math.round(bytes) : bytes.toFixed(1)} ${names[k]}`;
};

const unpacked = async () => {
  const packed = Uint8Array.from(atob(data.runs), each => each.charCodeAt(0));
  const stream = new Blob([packed]).stream().pipeThrough(new DecompressionStream('deflate'));
  const bytes = new Uint8Array(await new Response(stream).arrayBuffer());
  const planes = 6;
  const number = bytes.length / planes / 3;
  const column = which => {
    const found = new Float64Array(number);
    for (let plane = planes - 1; plane >= 0; plane -= 1) {
      const first = (which * planes + plane) * number;
      for (let k = 0; k < number; k += 1) found[k] = found[k] * 256 + bytes[first + k];
    }
    return found;
  };
  const [gaps, sizes, kinds] = [column(0), column(1), column(2)];
  let at = 0;
  for (let k = 0; k < number; k += 1) {
    gaps[k] += at;
    at = gaps[k] + sizes[k];
  }
  return { starts: gaps, sizes, kinds, number };
};

// The first of some things that lie in a row whose end is beyond a place.
const firstBeyond = (number, end, place) => {
  let low = 0;
  let high = number;
  while (low < high) {
    const middle = (low + high) >> 1;
    if (end(middle) > place) high = middle;
    else low = middle + 1;
  }
  return low;
};

class MemoryMap {
  constructor(runs) {
    this.runs = runs;
    this.tiles = data.columns * data.rows;
    this.box = document.getElementById('map');
    this.read = document.getElementById('map-read');
    this.svgs = all('svg.map', this.box);
    this.marks = this.svgs.map(svg => {
      const mark = document.createElementNS(svg.namespaceURI, 'rect');
      mark.setAttribute('class', 'at');
      mark.setAttribute('width', STEP + 1);
      mark.setAttribute('height', STEP + 1);
      svg.append(mark);
      return mark;
    });
    this.unit = data.unit;
    this.from = 0;
    // At first, where something changes.
    const first = runs.kinds.findIndex(kind => data.kinds[kind][0] !== data.kinds[kind][1]);
    this.tile = Math.floor((runs.starts[Math.max(first, 0)] ?? 0) / data.unit);
    this.listen();
    this.draw();
  }

  listen() {
    const tileAt = (svg, event) => {
      const box = svg.getBoundingClientRect();
      const scale = box.width / svg.viewBox.baseVal.width;
      const column = Math.floor(((event.clientX - box.left) / scale - 1) / STEP);
      const row = Math.floor(((event.clientY - box.top) / scale - 1) / STEP);
      const clamp = (value, most) => Math.max(0, Math.min(most - 1, value));
      return clamp(row, data.rows) * data.columns + clamp(column, data.columns);
    };
    for (const svg of this.svgs) {
      svg.onmousemove = event => this.select(tileAt(svg, event));
      svg.onclick = event => {
        this.select(tileAt(svg, event));
        this.zoom(1 / 8);
      };
    }
    const moves = {
      ArrowRight: 1,
      ArrowLeft: -1,
      ArrowDown: data.columns,
      ArrowUp: -data.columns,
      PageDown: this.tiles,
      PageUp: -this.tiles,
    };
    this.box.onkeydown = event => {
      if (event.ctrlKey || event.altKey || event.metaKey) return;
      const by = moves[event.key];
      if (by) this.move(by);
      else if (event.key === '+' || event.key === '=' || event.key === 'Enter') this.zoom(1 / 8);
      else if (event.key === '-' || event.key === 'Escape') this.zoom(8);
      else if (event.key === 'Home') this.whole();
      else return;
      event.preventDefault();
    };
    this.box.onfocus = () => this.select(this.tile);
    const bar = document.createElement('div');
    bar.className = 'buttons';
    bar.append(
      button('Closer', '', () => this.zoom(1 / 8)),
      button('Further', '', () => this.zoom(8)),
      button('All of it', '', () => this.whole()),
      button('Earlier', '', () => this.move(-this.tiles)),
      button('Later', '', () => this.move(this.tiles)),
    );
    this.box.after(bar);
    for (const cell of all('td[data-axis]')) {
      cell.append(button('Show', 'show', () => {
        this.show(Number(cell.dataset.axis), Number(cell.dataset.pages));
      }));
    }
    document.documentElement.classList.add('live');
  }

  whole() {
    this.unit = data.unit;
    this.from = 0;
    this.tile = 0;
    this.draw();
  }

  show(start, pages) {
    this.unit = 1;
    while (this.unit * this.tiles < pages) this.unit *= 2;
    this.from = Math.floor(start / this.unit) * this.unit;
    this.tile = 0;
    this.draw();
    this.box.scrollIntoView({ block: 'center' });
    this.box.focus({ preventScroll: true });
  }

  zoom(by) {
    const place = this.from + this.tile * this.unit;
    this.unit = Math.max(1, Math.min(data.unit, this.unit * by));
    this.look(place);
  }

  move(by) {
    const tile = this.tile + by;
    if (tile >= 0 && tile < this.tiles) this.select(tile);
    else this.look(this.from + tile * this.unit);
  }

  // Show the surroundings of a page, so that its row is in the middle.
  look(page) {
    const place = Math.max(0, Math.min(data.total - 1, page));
    const row = data.columns * this.unit;
    const most = Math.max(0, Math.ceil(data.total / row) - data.rows);
    const first = Math.floor(place / row) - Math.floor(data.rows / 2);
    this.from = Math.max(0, Math.min(most, first)) * row;
    this.tile = Math.floor((place - this.from) / this.unit);
    this.draw();
  }

  // Each run that meets [start, end): its kind, and how many of its pages do.
  within(start, end, tell) {
    const { starts, sizes, kinds, number } = this.runs;
    let k = firstBeyond(number, each => starts[each] + sizes[each], start);
    for (; k < number && starts[k] < end; k += 1) {
      tell(kinds[k], Math.max(starts[k], start), Math.min(starts[k] + sizes[k], end));
    }
  }

  draw() {
    const last = this.from + this.tiles * this.unit;
    const codes = Object.keys(data.codes).map(Number).filter(code => code > 0);
    // From below: folios, the largest first; then all else.
    codes.sort((a, b) => (a > 60) - (b > 60) || (a > 60 ? a - b : b - a));
    this.svgs.forEach((svg, after) => {
      const counts = new Map(codes.map(code => [code, new Map()]));
      this.within(this.from, last, (kind, start, end) => {
        const code = data.kinds[kind][after];
        if (!code) return;
        const tiles = counts.get(code);
        for (let at = start; at < end;) {
          const tile = Math.floor((at - this.from) / this.unit);
          const next = Math.min(end, this.from + (tile + 1) * this.unit);
          tiles.set(tile, (tiles.get(tile) ?? 0) + next - at);
          at = next;
        }
      });
      const low = new Float64Array(this.tiles);
      const paths = [['ground', this.ground(last)]];
      for (const code of codes) {
        let path = '';
        for (const [tile, pages] of counts.get(code)) {
          const high = low[tile] + (SIDE * pages) / this.unit;
          const x = (tile % data.columns) * STEP;
          const y = Math.floor(tile / data.columns) * STEP + SIDE - high;
          path += `M${x} ${y.toFixed(2)}h${SIDE}v${(high - low[tile]).toFixed(2)}h-${SIDE}z`;
          low[tile] = high;
        }
        if (path) paths.push([data.codes[code][0], path]);
      }
      const group = svg.querySelector('g');
      group.replaceChildren(...paths.map(([kind, path]) => {
        const made = document.createElementNS(svg.namespaceURI, 'path');
        made.setAttribute('class', kind);
        made.setAttribute('d', path);
        return made;
      }));
    });
    document.getElementById('unit').textContent = bytesText(this.unit * data.page);
    this.select(this.tile);
  }

  ground(last) {
    let path = '';
    const end = ([start, pages]) => start + pages;
    let done = -1;
    let k = firstBeyond(data.mappings.length, each => end(data.mappings[each]), this.from);
    for (; k < data.mappings.length && data.mappings[k][0] < last; k += 1) {
      const first = Math.floor((data.mappings[k][0] - this.from) / this.unit);
      const beyond = Math.ceil((end(data.mappings[k]) - this.from) / this.unit);
      for (let tile = Math.max(first, done + 1, 0); tile < Math.min(beyond, this.tiles); tile += 1) {
        path += `M${(tile % data.columns) * STEP} ${Math.floor(tile / data.columns) * STEP}`;
        path += `h${SIDE}v${SIDE}h-${SIDE}z`;
        done = tile;
      }
    }
    return path;
  }

  select(tile) {
    this.tile = tile;
    for (const mark of this.marks) {
      mark.setAttribute('x', (tile % data.columns) * STEP - 1);
      mark.setAttribute('y', Math.floor(tile / data.columns) * STEP - 1);
    }
    const text = this.text(tile);
    if (this.read.textContent !== text) this.read.textContent = text;
  }

  text(tile) {
    const start = this.from + tile * this.unit;
    const end = start + this.unit;
    const k = firstBeyond(data.mappings.length, each => {
      const [first, pages] = data.mappings[each];
      return first + pages;
    }, start);
    if (k === data.mappings.length || data.mappings[k][0] >= end) return 'Between two mappings.';
    const [first, , address, process, name] = data.mappings[k];
    const page = Math.max(start, first);
    const at = BigInt(`0x${address}`) + BigInt(page - first) * BigInt(data.page);
    const sums = [new Map(), new Map(), new Map()];
    this.within(start, end, (kind, from, to) => {
      data.kinds[kind].forEach((value, which) => {
        sums[which].set(value, (sums[which].get(value) ?? 0) + to - from);
      });
    });
    const names = sum => {
      const found = [...sum].filter(([code]) => code > 0).sort((a, b) => b[0] - a[0]);
      const texts = found.map(([code, pages]) => `${bytesText(pages * data.page)} ${data.codes[code][1]}`);
      return texts.join(', ') || 'nothing';
    };
    const lines = [
      `0x${at.toString(16)}: ${bytesText(this.unit * data.page)} of ${name || 'anonymous memory'}, ${process}`,
      `Now: ${names(sums[0])}. Then: ${names(sums[1])}.`,
    ];
    const reasons = [...sums[2]].filter(([reason]) => reason >= 0).sort((a, b) => b[1] - a[1]);
    for (const [reason, pages] of reasons.slice(0, 3)) {
      lines.push(`Why ${bytesText(pages * data.page)} stay: ${data.reasons[reason]}.`);
    }
    if (reasons.length > 3) lines.push(`And ${reasons.length - 3} reasons more: look closer.`);
    return lines.join('\n');
  }
}

if (data.runs && typeof DecompressionStream === 'function') {
  unpacked().then(runs => new MemoryMap(runs));
}
