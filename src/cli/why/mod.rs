//! `swelter why`: the readings that a row is the mean of, from a service, added up again here.

mod answer;
mod print;

use std::io::{self, Write as _};
use std::path::PathBuf;

use clap::Args;
use percent_encoding::{NON_ALPHANUMERIC, utf8_percent_encode};

use self::answer::{Explanation, WhyPage};
use super::CliError;
use super::service_access::ServiceClient;
use crate::model::{EventTime, TemperatureUnit, WindUnit};

/// Print why a row has its rolling heat index
///
/// The readings of its window come as a table, with the integers that are summed, and after them the
/// sum, the count and the mean. The command adds them up again, and fails if they do not give the
/// mean that the service serves.
#[derive(Args, Debug)]
pub struct WhyArgs {
    /// The key of the city
    city: String,
    /// The time of the row, as in 2025-11-24T16:00:00Z
    #[arg(long, value_name = "TIME")]
    reading_at: EventTime,
    /// The address of the service
    #[arg(long, default_value = "http://127.0.0.1:8080")]
    url: String,
    /// The unit of heat indexes and temperatures [default: that of the service]
    #[arg(long, value_name = "UNIT")]
    output_units: Option<TemperatureUnit>,
    /// The unit of wind speeds [default: that of the service]
    #[arg(long, value_name = "UNIT")]
    output_wind_units: Option<WindUnit>,
    /// Print the answer of the service as one JSON object, with the readings of all pages
    #[arg(long)]
    json: bool,
    /// A file that holds the bearer token
    #[arg(long, value_name = "FILE")]
    token_file: Option<PathBuf>,
    /// A PEM file of certificates that are trusted instead of the system's
    #[arg(long, value_name = "FILE")]
    ca_file: Option<PathBuf>,
}

/// How often all pages are requested, if a reading of the window changes between two of them.
const MAX_ATTEMPTS: u32 = 5;

impl WhyArgs {
    pub(super) fn run(self) -> Result<(), CliError> {
        let client = ServiceClient::new(&self.url, self.token_file.as_deref(), self.ca_file.as_deref());
        let explanation = self.request_explanation(&client.map_err(CliError::Failed)?)?;
        let mut out = io::stdout().lock();
        let written = if self.json {
            explanation.to_json().and_then(|json| writeln!(out, "{json}"))
        } else {
            print::write_table(&explanation, &mut out)
        };
        written.and_then(|()| out.flush()).map_err(|error| CliError::write_error(None, &error))?;
        explanation.verify().map_err(CliError::Failed)
    }

    /// Requests all pages; anew if the window has changed between two of them.
    fn request_explanation(&self, client: &ServiceClient) -> Result<Explanation, CliError> {
        for _ in 0..MAX_ATTEMPTS {
            if let Some(explanation) = self.request_pages(client).map_err(CliError::Failed)? {
                return Ok(explanation);
            }
        }
        Err(CliError::Failed(format!(
            "readings of this window change faster than its pages can be read ({MAX_ATTEMPTS} attempts): try again later"
        )))
    }

    /// `None` if the window has changed between two pages.
    fn request_pages(&self, client: &ServiceClient) -> Result<Option<Explanation>, String> {
        let mut explanation: Option<Explanation> = None;
        let mut cursor = None;
        loop {
            let page = WhyPage::parse(&client.get(&self.path(cursor.as_deref()))?)?;
            cursor = page.next_cursor().map(str::to_owned);
            match &mut explanation {
                None => explanation = Some(Explanation::of_first_page(page)?),
                Some(explanation) if explanation.is_of_same_window(&page) => explanation.add_page(page)?,
                Some(_) => return Ok(None),
            }
            if cursor.is_none() {
                return Ok(explanation);
            }
        }
    }

    fn path(&self, cursor: Option<&str>) -> String {
        let encoded = |text: &str| utf8_percent_encode(text, NON_ALPHANUMERIC).to_string();
        let reading_at = encoded(&self.reading_at.to_string());
        let mut path = format!("/v1/cities/{}/why?reading_at={reading_at}", encoded(&self.city));
        let units = self.output_units.map(TemperatureUnit::name);
        let wind_units = self.output_wind_units.map(WindUnit::name);
        for (name, value) in [("units", units), ("wind_units", wind_units), ("cursor", cursor)] {
            if let Some(value) = value {
                path += &format!("&{name}={}", encoded(value));
            }
        }
        path
    }
}
