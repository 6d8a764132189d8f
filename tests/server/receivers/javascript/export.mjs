// Exports one of each instrument, twice, and two log records, with OpenTelemetry's own SDK: `node export.mjs URL json|protobuf`.
// Fails unless the SDK says that all of it was taken.
import { ValueType } from "@opentelemetry/api";
import { SeverityNumber } from "@opentelemetry/api-logs";
import { OTLPLogExporter as JsonLogs } from "@opentelemetry/exporter-logs-otlp-http";
import { OTLPLogExporter as ProtobufLogs } from "@opentelemetry/exporter-logs-otlp-proto";
import { AggregationTemporalityPreference, OTLPMetricExporter as JsonMetrics } from "@opentelemetry/exporter-metrics-otlp-http";
import { OTLPMetricExporter as ProtobufMetrics } from "@opentelemetry/exporter-metrics-otlp-proto";
import { resourceFromAttributes } from "@opentelemetry/resources";
import { LoggerProvider, SimpleLogRecordProcessor } from "@opentelemetry/sdk-logs";
import { AggregationType, MeterProvider, PeriodicExportingMetricReader } from "@opentelemetry/sdk-metrics";

const [url, encoding] = process.argv.slice(2);
const json = encoding === "json";
const options = {
  url: `${url}/v1/metrics`,
  compression: json ? "none" : "gzip",
  temporalityPreference: json ? AggregationTemporalityPreference.DELTA : AggregationTemporalityPreference.CUMULATIVE,
};
const exporter = new (json ? JsonMetrics : ProtobufMetrics)(options);
const results = [];
const send = exporter.export.bind(exporter);
exporter.export = (batch, done) => send(batch, (result) => (results.push(result), done(result)));
const resource = resourceFromAttributes({ "service.name": "javascript", "service.instance.id": encoding, "host.name": "a", ranks: [0, 1] });
const reader = new PeriodicExportingMetricReader({ exporter, exportIntervalMillis: 3600_000, exportTimeoutMillis: 60_000 });
const provider = new MeterProvider({
  resource,
  readers: [reader],
  views: [{ instrumentName: "exponential", aggregation: { type: AggregationType.EXPONENTIAL_HISTOGRAM, options: { maxSize: 20 } } }],
});
const meter = provider.getMeter("conformance", "1.2", { schemaUrl: "https://opentelemetry.io/schemas/1.30.0" });
const requests = meter.createCounter("requests", { unit: "{request}", description: "how many", valueType: ValueType.INT });
const connections = meter.createUpDownCounter("connections", { valueType: ValueType.INT });
const temperature = meter.createGauge("temperature", { unit: "Cel" });
const durations = meter.createHistogram("durations", { unit: "s", advice: { explicitBucketBoundaries: [0.1, 1, 10] } });
const exponential = meter.createHistogram("exponential");
meter.createObservableCounter("bytes", { unit: "By" }).addCallback((result) => result.observe(1234.5));

for (const round of [1, 2]) {
  requests.add(2 * round, { route: "/a", code: 200, cached: false, weights: [0.5, 1.5] });
  requests.add(40 * round, { route: "/b" });
  connections.add(-3 * round);
  temperature.record(20.25 * round);
  for (const value of [0.05, 0.5, 0.5, 5, 50]) durations.record(value * round);
  for (const value of [0, 1, 2, 4, 1000]) exponential.record(value * round);
  await reader.forceFlush();
}
await exporter.shutdown(); // not the provider, which would collect once more
if (results.length !== 2 || results.some((result) => result.code !== 0)) throw new Error(`refused: ${JSON.stringify(results)}`);

const answers = [];
const logExporter = new (json ? JsonLogs : ProtobufLogs)({ url: `${url}/v1/logs` });
const sendLogs = logExporter.export.bind(logExporter);
logExporter.export = (records, done) => sendLogs(records, (result) => (answers.push(result), done(result)));
const loggers = new LoggerProvider({ resource, processors: [new SimpleLogRecordProcessor({ exporter: logExporter })] });
const logger = loggers.getLogger("conformance");
const body = { text: "ü", deep: [1, 2.5, true, null, { bytes: new Uint8Array([255, 0]) }] };
logger.emit({ eventName: "checkpoint", body, attributes: { "tensormeter.key": "model" }, timestamp: [1750000000, 5] });
logger.emit({ severityNumber: SeverityNumber.WARN, body: "plain", timestamp: [1750000001, 0] });
await loggers.shutdown();
if (answers.some((result) => result.code !== 0)) throw new Error(`refused: ${JSON.stringify(answers)}`);
