// The command that restores an artifact: it copies it to the current folder, or loads it.

import type { Artifact } from "../data/provenance";

/** Characters that could end a quoted word or the line, or that a terminal would interpret. */
const UNSAFE = /[\u0000-\u001f\u007f-\u009f\u200e\u200f\u2028-\u202e\u2066-\u2069]/;

const quoted = (text: string) => (/^[\w./:@%+,=-]+$/.test(text) ? text : `'${text.replaceAll("'", `'\\''`)}'`);

/** Return the command; empty if there is none, because credentials were masked or the address is of another kind. */
export function restoreCommand({ path, uri, isFolder }: Artifact): string {
  const place = path || uri;
  if (!place || UNSAFE.test(place) || place.includes("***")) return "";
  if (path) {
    if (isFolder) return `cp -r ${quoted(path)} .`;
    if (/\.(pt|pth)$/.test(path)) return `torch.load(${JSON.stringify(path)}, map_location="cpu", weights_only=True)`;
    if (path.endsWith(".safetensors")) return `safetensors.torch.load_file(${JSON.stringify(path)})`;
    return `cp ${quoted(path)} .`;
  }
  const folder = uri.endsWith("/") ? " --recursive" : "";
  if (/^s3:/i.test(uri)) return `aws s3 cp${folder} ${quoted(uri)} .`;
  if (/^gs:/i.test(uri)) return `gcloud storage cp${folder} ${quoted(uri)} .`;
  const [, owner, model, file] = /^hf:\/\/([\w.-]+)\/([\w.-]+)(?:\/(.+))?$/i.exec(uri) ?? [];
  if (owner && model && !["datasets", "spaces"].includes(owner)) return `hf download ${owner}/${model}${file ? ` ${quoted(file)}` : ""}`;
  return /^https?:/i.test(uri) ? `curl -LO ${quoted(uri)}` : "";
}
