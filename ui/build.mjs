// Bundles the page into the folder that the server serves: `node build.mjs FOLDER`.
import { build } from "esbuild";
import { cp, readFile, writeFile } from "node:fs/promises";
import { basename } from "node:path";
import { fileURLToPath } from "node:url";

const resolvePath = (path) => fileURLToPath(new URL(path, import.meta.url));
const outdir = process.argv[2] ?? resolvePath("../src/tensormeter/server/static");

const { metafile } = await build({
  entryPoints: { app: resolvePath("src/main.ts"), style: resolvePath("src/style/main.css") },
  outdir,
  // File names contain a hash of their contents, so browsers may cache them forever.
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

const files = Object.keys(metafile.outputs).map((path) => `/static/${basename(path)}`);
const findFile = (pattern) => files.find((name) => pattern.test(name));
// Preload all chunks at once, so that the browser need not parse one to discover the next. Only rare content is loaded later.
const later = findFile(/\/mediaCard-/);
const chunks = files.filter((name) => name.endsWith(".js") && name !== findFile(/\/app-/) && name !== later).sort();
const preloads = chunks.map((name) => `<link rel="modulepreload" href="${name}" />`).join("\n    ");
const page = await readFile(resolvePath("src/index.html"), "utf8");
await writeFile(
  `${outdir}/index.html`,
  page.replace("/static/style.css", findFile(/\/style-/)).replace("/static/app.js", findFile(/\/app-/)).replace("</head>", `  ${preloads}\n  </head>`),
);
await cp(resolvePath("src/favicon.svg"), `${outdir}/favicon.svg`);
