//! Ways in: MCP over stdio and HTTP, and the pages a person sees. Only here are `rmcp` and `axum` imported.

pub mod pages;
