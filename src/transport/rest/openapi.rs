//! What the REST API takes and answers, as an OpenAPI 3.1 document: its schemas are those of the types that are read and
//! written.

use std::sync::LazyLock;

use axum::http::header;
use axum::response::IntoResponse;
use schemars::generate::SchemaSettings;
use schemars::{JsonSchema, SchemaGenerator};
use serde_json::{Map, Value, json};

use super::auth::{Authorization, Authorize, ConfirmUser, ConfirmedUser, MAX_STATUS_WAIT};
use super::connections::Connection;
use super::definition::Definition;
use super::page::{DEFAULT_LIMIT, MAX_LIMIT, Paged};
use super::tools::{self, Execute, Executed};
use super::{ErrorBody, Health};

/// Where schemas stand in the document.
const SCHEMAS: &str = "/components/schemas";

/// `GET /v1/openapi.json`.
pub(super) async fn get() -> impl IntoResponse {
    static DOCUMENT: LazyLock<String> = LazyLock::new(|| document().to_string());
    ([(header::CONTENT_TYPE, "application/json")], DOCUMENT.as_str())
}

/// The document.
pub fn document() -> Value {
    let mut api = Api::new();
    let mut paths = Map::new();
    for operation in operations(&mut api) {
        let (path, method) = (operation.path, operation.method);
        paths.entry(path).or_insert_with(|| json!({}))[method] = operation.object();
    }
    json!({
        "openapi": "3.1.0",
        "info": {
            "title": "obo",
            "version": env!("CARGO_PKG_VERSION"),
            "description": "REST for applications: backends that know their users, and have tools act as them. The paths \
                            and shapes are those of the public Arcade clients.",
            "license": { "name": "Apache-2.0", "url": "https://www.apache.org/licenses/LICENSE-2.0" },
        },
        "servers": [{ "url": "/", "description": "The server that answers with this document." }],
        "security": [{ "key": [] }, { "bearer": [] }],
        "tags": [
            { "name": "auth", "description": "A user's connection: asked for, waited for, confirmed." },
            { "name": "connections", "description": "What an application's users have connected." },
            { "name": "server", "description": "The server itself. Needs no key." },
            { "name": "tools", "description": "What can be called, and the calls." },
        ],
        "paths": paths,
        "components": {
            "schemas": api.schemas(),
            "securitySchemes": {
                "key": {
                    "type": "apiKey", "in": "header", "name": "Authorization",
                    "description": "The application's key, alone.",
                },
                "bearer": { "type": "http", "scheme": "bearer", "description": "The same behind `Bearer`." },
            },
        },
    })
}

/// Makes schemas of what is read, and of what is written: a field that may be left out is not the same in both.
struct Api {
    read: SchemaGenerator,
    written: SchemaGenerator,
}

impl Api {
    fn new() -> Self {
        let settings = || {
            SchemaSettings::draft2020_12().with(|settings| {
                settings.definitions_path = SCHEMAS.into();
                settings.meta_schema = None;
            })
        };
        Self {
            read: settings().for_deserialize().into_generator(),
            written: settings().for_serialize().into_generator(),
        }
    }

    fn takes<T: JsonSchema>(&mut self) -> Option<Value> {
        Some(self.read.subschema_for::<T>().to_value())
    }

    fn answers<T: JsonSchema>(&mut self) -> Option<Value> {
        Some(self.written.subschema_for::<T>().to_value())
    }

    fn schemas(mut self) -> Map<String, Value> {
        let error = ErrorBody::schema_name();
        let _ = self.written.subschema_for::<ErrorBody>();
        let mut all = self.read.take_definitions(true);
        all.extend(self.written.take_definitions(true));
        debug_assert!(all.contains_key(&*error));
        all
    }
}

/// One operation.
struct Operation {
    method: &'static str,
    path: &'static str,
    id: &'static str,
    tag: &'static str,
    summary: &'static str,
    description: &'static str,
    parameters: Vec<Value>,
    takes: Option<Value>,
    /// The status of success, and what the answer is then.
    answers: (u16, Option<Value>),
    /// The statuses of errors beside those that any request may have.
    errors: &'static [u16],
}

impl Operation {
    fn object(self) -> Value {
        let open = self.tag == "server";
        let mut responses = Map::new();
        let (status, schema) = self.answers;
        let mut success = json!({ "description": "Done." });
        if let Some(schema) = schema {
            success["content"] = json!({ "application/json": { "schema": schema } });
        }
        responses.insert(status.to_string(), success);
        let any: &[u16] = if open { &[] } else { &[401, 500, 503] };
        let error = json!({ "application/json": { "schema": { "$ref": format!("#{SCHEMAS}/Error") } } });
        for status in self.errors.iter().chain(any) {
            responses.insert(status.to_string(), json!({ "description": meaning(*status), "content": error }));
        }
        let mut operation = json!({
            "operationId": self.id,
            "tags": [self.tag],
            "summary": self.summary,
            "description": self.description,
            "responses": responses,
        });
        if open {
            operation["security"] = json!([]);
        }
        if !self.parameters.is_empty() {
            operation["parameters"] = Value::Array(self.parameters);
        }
        if let Some(schema) = self.takes {
            let content = json!({ "application/json": { "schema": schema } });
            operation["requestBody"] = json!({ "required": true, "content": content });
        }
        operation
    }
}

/// What an error's status means, wherever it occurs.
fn meaning(status: u16) -> &'static str {
    match status {
        400 => "The request is not what this path takes; the text says why.",
        401 => "No key of an application was sent.",
        403 => "A policy denies it.",
        404 => "There is no such thing, or it is another application's.",
        408 => "The body took too long.",
        410 => "The authorization failed or expired; start again.",
        413 => "The body is too large.",
        429 => "Too many; `Retry-After` says when to try again.",
        502 => "The provider did not answer as it should.",
        503 => "Something that is needed is out of reach just now; try again.",
        _ => "Something went wrong in the server; its log says what.",
    }
}

fn query(name: &str, description: &str, schema: Value) -> Value {
    json!({ "name": name, "in": "query", "description": description, "schema": schema })
}

fn required(mut parameter: Value) -> Value {
    parameter["required"] = true.into();
    parameter
}

fn in_path(name: &str, description: &str) -> Value {
    json!({ "name": name, "in": "path", "required": true, "description": description, "schema": { "type": "string" } })
}

fn text() -> Value {
    json!({ "type": "string" })
}

fn paging() -> [Value; 2] {
    [
        query(
            "limit",
            "How many items a page has; more than the most are cut to it.",
            json!({ "type": "integer", "minimum": 0, "default": DEFAULT_LIMIT, "description": format!("At most {MAX_LIMIT}.") }),
        ),
        query("offset", "How many items to leave out.", json!({ "type": "integer", "minimum": 0, "default": 0 })),
    ]
}

fn user() -> Value {
    query("user_id", "For this user: only what they may see, and whether they have connected what it needs.", text())
}

fn include_format() -> Value {
    let mut parameter = query(
        "include_format",
        "The formats of model APIs that the answer has, too.",
        json!({ "type": "array", "items": { "type": "string", "enum": ["arcade", "openai", "anthropic"] } }),
    );
    parameter["style"] = "form".into();
    parameter["explode"] = false.into();
    parameter
}

fn format() -> Value {
    query("format", "The model API.", json!({ "type": "string", "enum": ["openai", "anthropic"], "default": "openai" }))
}

fn toolkit() -> Value {
    query("toolkit", "Only the tools of this one.", text())
}

fn operations(api: &mut Api) -> Vec<Operation> {
    vec![
        Operation {
            method: "post",
            path: "/v1/auth/authorize",
            id: "authorize",
            tag: "auth",
            summary: "Ask for a user's connection",
            description: "Answers `completed` where the user has it, else a link that the user must open.",
            parameters: vec![],
            takes: api.takes::<Authorize>(),
            answers: (200, api.answers::<Authorization>()),
            errors: &[400, 408, 413, 429],
        },
        Operation {
            method: "get",
            path: "/v1/auth/status",
            id: "authorizationStatus",
            tag: "auth",
            summary: "Wait for a user's connection",
            description: "Held while it is pending, for as long as `wait` says.",
            parameters: vec![
                required(query("id", "The authorization's id.", text())),
                query(
                    "wait",
                    "How long the answer may be held, in seconds; longer than the most is cut to it.",
                    json!({
                        "type": "integer", "minimum": 0, "default": 0,
                        "description": format!("At most {}.", MAX_STATUS_WAIT.as_secs()),
                    }),
                ),
            ],
            takes: None,
            answers: (200, api.answers::<Authorization>()),
            errors: &[400, 404, 410, 502],
        },
        Operation {
            method: "post",
            path: "/v1/auth/confirm_user",
            id: "confirmUser",
            tag: "auth",
            summary: "Say whose browser it was",
            description: "For applications with `user_verifier_url`, whose page was opened with `flow_id`, and for those with \
                          `confirm_by_code`. Another user than the authorization is for ends it.",
            parameters: vec![],
            takes: api.takes::<ConfirmUser>(),
            answers: (200, api.answers::<ConfirmedUser>()),
            errors: &[400, 404, 408, 413, 502],
        },
        Operation {
            method: "get",
            path: "/v1/tools",
            id: "listTools",
            tag: "tools",
            summary: "List the tools",
            description: "In the order of their names.",
            parameters: [user(), toolkit(), include_format()].into_iter().chain(paging()).collect(),
            takes: None,
            answers: (200, api.answers::<Paged<Definition>>()),
            errors: &[400],
        },
        Operation {
            method: "get",
            path: "/v1/tools/{name}",
            id: "getTool",
            tag: "tools",
            summary: "Get a tool",
            description: "By its name with its toolkit, in either spelling.",
            parameters: vec![in_path("name", "The tool's name."), user(), include_format()],
            takes: None,
            answers: (200, api.answers::<Definition>()),
            errors: &[400, 404],
        },
        Operation {
            method: "post",
            path: "/v1/tools/authorize",
            id: "authorizeTool",
            tag: "tools",
            summary: "Ask for the connection that a tool needs",
            description: "As `authorize`, with the scopes that the tool needs.",
            parameters: vec![],
            takes: api.takes::<tools::Authorize>(),
            answers: (200, api.answers::<Authorization>()),
            errors: &[400, 404, 408, 413, 429],
        },
        Operation {
            method: "post",
            path: "/v1/tools/execute",
            id: "executeTool",
            tag: "tools",
            summary: "Call a tool as a user",
            description: "A call that failed is answered with 200, too: `success` and `output.error` say so. Where the user \
                          must connect an account first, `output.authorization` has the link.",
            parameters: vec![],
            takes: api.takes::<Execute>(),
            answers: (200, api.answers::<Executed>()),
            errors: &[400, 404, 408, 413],
        },
        Operation {
            method: "get",
            path: "/v1/formatted_tools",
            id: "listFormattedTools",
            tag: "tools",
            summary: "List the tools for a model API",
            description: "Each as that API's requests take it.",
            parameters: [format(), user(), toolkit()].into_iter().chain(paging()).collect(),
            takes: None,
            answers: (200, api.answers::<Paged<Value>>()),
            errors: &[400],
        },
        Operation {
            method: "get",
            path: "/v1/formatted_tools/{name}",
            id: "getFormattedTool",
            tag: "tools",
            summary: "Get a tool for a model API",
            description: "As that API's requests take it.",
            parameters: vec![in_path("name", "The tool's name."), format(), user()],
            takes: None,
            answers: (200, Some(json!({ "type": "object" }))),
            errors: &[400, 404],
        },
        Operation {
            method: "get",
            path: "/v1/admin/user_connections",
            id: "listUserConnections",
            tag: "connections",
            summary: "List a user's connections",
            description: "Of one user, who must be named.",
            parameters: [
                required(query("user[id]", "The user, as the application knows them.", text())),
                query("provider[id]", "Only those to this provider.", text()),
            ]
            .into_iter()
            .chain(paging())
            .collect(),
            takes: None,
            answers: (200, api.answers::<Paged<Connection>>()),
            errors: &[400],
        },
        Operation {
            method: "delete",
            path: "/v1/admin/user_connections/{id}",
            id: "deleteUserConnection",
            tag: "connections",
            summary: "End a connection",
            description: "Revoked at the provider, then forgotten here.",
            parameters: vec![in_path("id", "The connection's id.")],
            takes: None,
            answers: (204, None),
            errors: &[404],
        },
        Operation {
            method: "get",
            path: "/v1/health",
            id: "health",
            tag: "server",
            summary: "Ask whether the server answers",
            description: "It does not look at the store.",
            parameters: vec![],
            takes: None,
            answers: (200, api.answers::<Health>()),
            errors: &[],
        },
        Operation {
            method: "get",
            path: "/v1/openapi.json",
            id: "openapi",
            tag: "server",
            summary: "Get this document",
            description: "It is the same for every application.",
            parameters: vec![],
            takes: None,
            answers: (200, Some(json!({ "type": "object" }))),
            errors: &[],
        },
    ]
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    #[test]
    fn every_path_is_described_and_every_name_stands_for_one_schema() {
        let document = document();
        let described: BTreeSet<&str> =
            document["paths"].as_object().unwrap().keys().map(|path| path.strip_prefix("/v1").unwrap()).collect();
        let routed: BTreeSet<&str> =
            super::super::routes().into_iter().map(|(path, _)| path).chain(["/health", "/openapi.json"]).collect();
        assert_eq!(described, routed);

        let mut api = Api::new();
        operations(&mut api);
        let read: BTreeSet<String> = api.read.take_definitions(true).into_iter().map(|(name, _)| name).collect();
        let written = api.written.take_definitions(true);
        assert!(written.keys().all(|name| !read.contains(name)), "{read:?}");
    }
}
