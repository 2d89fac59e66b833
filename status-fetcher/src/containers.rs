//! The containers of a cluster as Docker itself sees them.

use crate::{Error, Format};
use comfy_table::{Table, presets};
use node_manager::docker::ContainerCpu;
use std::io::Write;

const HEADERS: [&str; 6] = ["name", "used", "allotted", "cpu%", "mem_mib", "id"];

fn cells(container: &ContainerCpu) -> [String; 6] {
    let mebibytes = container.memory_used_bytes as f64 / f64::from(1 << 20);
    let allotted = container.allotted_cores.map_or_else(|| "-".to_owned(), |cores| format!("{cores:.2}"));
    let percent = container.percent.map_or_else(|| "-".to_owned(), |percent| format!("{percent:.1}"));
    [
        container.name.clone(),
        format!("{:.2}", container.used_cores),
        allotted,
        percent,
        format!("{mebibytes:.0}"),
        container.id.clone(),
    ]
}

/// Writes the containers.
///
/// # Errors
/// [`Error::Output`] when they cannot be written.
pub fn write(
    containers: &[ContainerCpu],
    format: Format,
    headers: bool,
    out: &mut (dyn Write + Send),
) -> Result<(), Error> {
    let json = |error: serde_json::Error| Error::Output(error.into());
    match format {
        Format::Table | Format::Wide => {
            let mut table = Table::new();
            table.load_preset(presets::NOTHING);
            if headers {
                table.set_header(HEADERS.map(str::to_uppercase));
            }
            containers.iter().for_each(|container| drop(table.add_row(cells(container))));
            table.lines().try_for_each(|line| writeln!(out, "{}", line.trim_end())).map_err(Error::Output)
        }
        Format::Json => {
            let all = serde_json::json!({ "items": containers, "next_cursor": null });
            writeln!(out, "{all}").map_err(Error::Output)
        }
        Format::Jsonl => containers.iter().try_for_each(|container| {
            serde_json::to_writer(&mut *out, container).map_err(json)?;
            writeln!(out).map_err(Error::Output)
        }),
        Format::Csv => {
            let mut writer = csv::Writer::from_writer(out);
            let failed = |error: csv::Error| Error::Output(error.into());
            if headers {
                writer.write_record(HEADERS).map_err(failed)?;
            }
            containers
                .iter()
                .try_for_each(|container| writer.write_record(cells(container)))
                .map_err(failed)?;
            writer.flush().map_err(Error::Output)
        }
    }
}
