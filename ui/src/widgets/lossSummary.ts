// What a run lost, in words. The reasons are those of `losses` in the API.

import * as format from "../base/format";
import type * as api from "../data/api";

/** For each reason: one of what is counted, several of it, and why it was lost. */
const REASONS: Record<string, [string, string, string]> = {
  ring_full: ["point", "points", "the trainer's ring buffer was full; a larger buffer_bytes helps"],
  unsupported_value: ["value", "values", "of a kind that cannot be recorded; the trainer's warnings name each key"],
  too_many_layouts: ["point", "points", "too many different metrics were logged"],
  device_unfinished: ["point", "points", "not computed by the device before the process ended"],
  media_full: ["item", "items", "too many tables, images and texts waited to be sent"],
  text_too_large: ["text", "texts", "larger than 4 MiB"],
  table_too_large: ["table", "tables", "larger than 12 MiB or 700,000 cells, or with too many images"],
  image_too_large: ["image", "images", "larger than 16 MiB"],
  config_too_large: ["configuration value", "configuration values", "the configuration was larger than 1 MiB, so its largest values were left out"],
  media_damaged: ["item", "items", "tables, images or texts that could not be read or encoded"],
  spool_full_system: ["point", "points", "system metrics; the disk space for undelivered data was used up"],
  spool_full_media: ["item", "items", "tables, images and texts; the disk space for undelivered data was used up"],
  spool_full_scalars: ["point", "points", "the disk space for undelivered data was used up, so the history was thinned"],
  damaged: ["point", "points", "could not be read any more"],
  refused: ["item", "items", "refused by the server; its reasons are in the trainer's warnings"],
};

/** One sentence for each reason, the largest count first. */
export function lossSentences(losses: api.RunDetail["losses"] | undefined): string[] {
  return Object.entries(losses ?? {})
    .filter(([, n]) => n > 0)
    .sort(([, a], [, b]) => b - a)
    .map(([reason, n]) => {
      const [singular, plural, why] = REASONS[reason] ?? ["item", "items", reason.replaceAll("_", " ")];
      return `${format.count(n)} ${n === 1 ? singular : plural}: ${why}.`;
    });
}
