// Bundles the page into the folder that the server serves. `node build.mjs FOLDER`.
import { build } from "esbuild";
import { cp, readFile, writeFile } from "node:fs/promises";
import { basename } from "node:path";
import { fileURLToPath } from "node:url";

const here = (path) => fileURLToPath(new URL(path, import.meta.url));
const outdir = process.argv[2] ?? here("../src/tensormeter/server/static");

const { metafile } = await build({
  entryPoints: { app: here("src/main.ts"), style: here("src/style/main.css") },
  outdir,
  // Names say what is in a file, so browsers keep it for ever.
  entryNames: "[name]-[hash]",
  chunkNames: "[name]-[hash]",
  bundle: true,
  splitting: true,
  metafile: true,
  minify: true,
  format: "esm",
  target: ["chrome123", "firefox120", "safari17.5"],
  legalComments: "eof",
  logLevel: "warning",
});

const built = Object.keys(metafile.outputs).map((path) => `/static/${basename(path)}`);
const one = (kind) => built.find((name) => kind.test(name));
const chunks = built.filter((name) => name.endsWith(".js") && name !== one(/\/app-/)).sort();
// Parts of the script are asked for together, not when the part before has been read.
const preloads = chunks.map((name) => `<link rel="modulepreload" href="${name}" />`).join("\n    ");
const page = await readFile(here("src/index.html"), "utf8");
await writeFile(
  `${outdir}/index.html`,
  page.replace("/static/style.css", one(/\/style-/)).replace("/static/app.js", one(/\/app-/)).replace("</head>", `  ${preloads}\n  </head>`),
);
await cp(here("src/favicon.svg"), `${outdir}/favicon.svg`);
