//! The APIs, one a file: each has its routes and a function that returns its warp filter.

pub(super) mod cities;
pub(super) mod city;
mod city_json;
mod city_key;
pub(super) mod documents;
pub(super) mod echo;
pub(super) mod health;
pub(super) mod history;
mod history_page;
pub(super) mod ingest;
pub(super) mod page;
mod row_pages;
pub(super) mod status;
pub(super) mod subscribe;
pub(super) mod why;
mod why_json;
