// Shows the OpenAPI description of the service.

const byId = (id) => document.getElementById(id);

function element(tag, attributes = {}, ...children) {
  const node = Object.assign(document.createElement(tag), attributes);
  node.append(...children);
  return node;
}

/** Returns the name of a type in the description. */
function typeOf(schema = {}) {
  if (schema.$ref) return schema.$ref.split("/").at(-1);
  if (schema.anyOf) return schema.anyOf.map(typeOf).filter((name) => name !== "null").join(" or ");
  if (schema.enum) return schema.enum.map((value) => JSON.stringify(value)).join(" or ");
  if ("const" in schema) return JSON.stringify(schema.const);
  if (schema.prefixItems) return `[${schema.prefixItems.map(typeOf).join(", ")}]`;
  if (schema.type === "array") return `list of ${typeOf(schema.items)}`;
  return schema.format === "binary" ? "file" : (schema.type ?? "any");
}

function table(titles, rows) {
  const head = element("tr", {}, ...titles.map((title) => element("th", { scope: "col" }, title)));
  const body = rows.map((cells) => element("tr", {}, ...cells.map((cell) => element("td", {}, cell))));
  return element("table", {}, element("thead", {}, head), element("tbody", {}, ...body));
}

function operation(path, method, { summary, parameters = [], requestBody, responses }) {
  const title = element("h2", {}, element("span", { className: "method" }, method), element("code", {}, path));
  const nodes = [title, element("p", {}, `${summary}.`)];
  if (requestBody) {
    const kinds = Object.keys(requestBody.content).join(", ");
    nodes.push(element("p", {}, `Body: ${requestBody.description} (${kinds}).`));
  }
  if (parameters.length) {
    const rows = parameters.map(({ name, schema, description = "" }) => [
      element("code", {}, name),
      typeOf(schema),
      description + ("default" in schema ? ` (default: ${JSON.stringify(schema.default)})` : ""),
    ]);
    nodes.push(table(["Parameter of the query", "Type", "Meaning"], rows));
  }
  const rows = Object.entries(responses).map(([status, { description, content = {} }]) => {
    const kinds = Object.entries(content).map(([kind, { schema }]) => (schema ? `${typeOf(schema)} (${kind})` : kind));
    return [status, description, kinds.join("; ")];
  });
  nodes.push(table(["Status", "Meaning", "Content"], rows));
  return nodes;
}

function type(name, { description = "", properties = {} }) {
  const rows = Object.entries(properties).map(([field, schema]) => [
    element("code", {}, field),
    typeOf(schema),
    schema.description ?? "",
  ]);
  return [element("h2", { id: name }, name), element("p", {}, description), table(["Field", "Type", "Meaning"], rows)];
}

const address = location.origin;
byId("examples").textContent = [
  `curl --data-binary @photo.jpg '${address}/predict?score=0.5'`,
  `curl -F image=@photo.jpg '${address}/predict?format=jpeg' -o boxes.jpg`,
].join("\n");
const description = await (await fetch("openapi.json")).json();
byId("operations").append(
  ...Object.entries(description.paths).flatMap(([path, methods]) =>
    Object.entries(methods).flatMap(([method, details]) => operation(path, method, details)),
  ),
);
byId("types").append(...Object.entries(description.components.schemas).flatMap(([name, schema]) => type(name, schema)));
