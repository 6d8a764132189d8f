// The kinds of logged media.

import type * as api from "./api";

export const KINDS = ["image", "images", "video", "audio", "figure", "html", "table", "text"] as const;

export type Kind = (typeof KINDS)[number];

export const kindOf = ({ name }: api.TelemetryEvent) => name.replace("tensormeter.", "") as Kind;

/** Size up to which bodies are part of lists of events, in characters. Larger ones are read one by one when they are shown. */
export const MAX_CHARACTERS = 20_000;
