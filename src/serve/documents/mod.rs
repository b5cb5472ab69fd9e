//! What programs read to learn the interface: OpenAPI for HTTP, AsyncAPI for the WebSockets.

pub(super) fn openapi() -> &'static [u8] {
    include_bytes!("openapi.json")
}

pub(super) fn asyncapi() -> &'static [u8] {
    include_bytes!("asyncapi.json")
}
