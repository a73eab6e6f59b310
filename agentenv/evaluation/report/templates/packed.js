// Data that is unpacked, or asked for, when somebody looks at it.

const SWEEP = dataOf("sweep");
const unpacked = new Map();

/** What a block of the page holds. Kept: sections are small, and looked at again. */
async function packed(name) {
  if (!unpacked.has(name)) unpacked.set(name, unpack(document.getElementById(name).textContent));
  return unpacked.get(name);
}

async function unpack(base64) {
  const letters = atob(base64);
  const bytes = new Uint8Array(letters.length);
  for (let place = 0; place < letters.length; place++) bytes[place] = letters.charCodeAt(place);
  const stream = new Blob([bytes]).stream().pipeThrough(new DecompressionStream("gzip"));
  return JSON.parse(await new Response(stream).text());
}

async function asked(path) {
  const answer = await fetch(path, { credentials: "omit" });
  if (!answer.ok) throw new Error("the server answered " + answer.status);
  return answer.json();
}

const taskIndex = () => (SWEEP.served ? asked("tasks") : packed("tasks"));

async function samplesOf(index, place) {
  if (SWEEP.served) return asked("samples/" + index.task[place]);
  return (await packed("section-" + index.section[place]))[place];
}
