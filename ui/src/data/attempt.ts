import type { Process, RunDetail } from "./api";

const PROVISIONAL = "tensormeter.run.attempt.provisional";
const KIND = "tensormeter.process.kind";

/** The training processes of a run's latest attempt. Processes that sample a machine count only if there are no others. */
export function ranksOf({ processes, attempt }: RunDetail): Process[] {
  const training = processes.filter(({ resource }) => resource[KIND] !== "node");
  const latest = training.filter((process) => process.attempt === attempt);
  const ranked = latest.filter(({ rank }) => rank !== null);
  return [ranked, latest, training, processes].find(({ length }) => length > 0) ?? [];
}

/** Whether no server has confirmed the number of the latest attempt. Attempts on other machines may then have the same number. */
export function isProvisional({ processes, attempt }: RunDetail): boolean {
  return processes.some((process) => process.attempt === attempt && process.resource[PROVISIONAL] === true);
}

/** The number of the latest attempt as text. */
export function attemptText(run: RunDetail): string {
  return isProvisional(run) ? `${run.attempt}, provisional: attempts on other machines may have the same number` : String(run.attempt);
}
