// SPDX-License-Identifier: GPL-2.0-or-later
// Fills V8's heap and buffers beside it, drops most, and fills it in part again.
const fs = require("fs");

function mark(name) {
  fs.writeSync(1, `mark ${name}\n`);
  fs.readSync(0, Buffer.alloc(16));
}

let seed = 1;
const random = (below) => (seed = (seed * 1103515245 + 12345) & 0x7fffffff) % below;
const tree = new Map();
for (let i = 0; i < 60000; i++) {
  tree.set(`key${i}`, { number: i, text: "x".repeat(random(40)) + i, list: [i, i + 1, i + 2] });
}
mark("filled");
for (let i = 0; i < 60000; i++) {
  if (i % 3) tree.delete(`key${i}`);
}
global.gc();
mark("two thirds dropped");
const buffers = [];
for (let i = 0; i < 80; i++) buffers.push(Buffer.alloc(1000 + random(200000), 1));
mark("buffers");
