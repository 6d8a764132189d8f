// Bundles the page into the folder that the server serves. `node build.mjs FOLDER`.
import { build } from "esbuild";
import { cp } from "node:fs/promises";
import { fileURLToPath } from "node:url";

const here = (path) => fileURLToPath(new URL(path, import.meta.url));
const outdir = process.argv[2] ?? here("../src/tensormeter/server/static");

await build({
  entryPoints: { app: here("src/main.ts"), style: here("src/style/main.css") },
  outdir,
  bundle: true,
  minify: true,
  format: "esm",
  target: ["chrome123", "firefox120", "safari17.5"],
  legalComments: "eof",
  logLevel: "warning",
});
for (const name of ["index.html", "favicon.svg"]) await cp(here(`src/${name}`), `${outdir}/${name}`);
