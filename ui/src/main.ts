// Entry point: prefetches the data of the current address while the rest of the code loads.

import * as route from "./base/route";
import { prefetch } from "./pages/prefetch";

const selection = prefetch(route.current());
const { start } = await import("./shell");
start(selection);
