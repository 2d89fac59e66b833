//! Runs the settings, prints the tables, and writes them with the plots into a folder.

use clap::Parser;
use placement_simulator::{catalogue, contenders, many, plots, scenario::Scenario, table};
use std::{error::Error, fs, num::NonZero, path::PathBuf, process::ExitCode, thread, time::Instant};

/// Simulates placement: the production scheduler beside its rivals.
#[derive(Parser)]
struct Arguments {
    /// Seeds of each setting.
    #[arg(long, default_value_t = 10, value_parser = clap::value_parser!(u64).range(1..))]
    seeds: u64,
    /// Only this setting, or all that begin so (`load-*`); may be given again. All if absent.
    #[arg(long)]
    scenario: Vec<String>,
    /// Only who has this name; may be given again. All if absent.
    #[arg(long)]
    contender: Vec<String>,
    /// Write `tables.md` and the plots into this folder.
    #[arg(long)]
    write: Option<PathBuf>,
    /// How many cores; all if absent.
    #[arg(long)]
    threads: Option<NonZero<usize>>,
    /// Print the names of settings and of who takes part, and do nothing.
    #[arg(long)]
    list: bool,
}

#[allow(clippy::print_stdout, reason = "the tables are this program's data")]
fn say(text: &str) {
    println!("{text}");
}

#[allow(clippy::print_stderr, reason = "how far it is, for the person who waits")]
fn progress(text: &str) {
    eprintln!("{text}");
}

fn matches(wanted: &str, name: &str) -> bool {
    wanted.strip_suffix('*').map_or(wanted == name, |prefix| name.starts_with(prefix))
}

/// The settings that were asked for, with who takes part.
fn plan(arguments: &Arguments) -> Vec<(Scenario, Vec<&'static str>)> {
    let asked =
        |wanted: &[String], is: &dyn Fn(&str) -> bool| wanted.is_empty() || wanted.iter().any(|one| is(one));
    let scenarios = catalogue::all().into_iter();
    scenarios
        .filter(|scenario| asked(&arguments.scenario, &|wanted| matches(wanted, &scenario.name)))
        .map(|scenario| {
            let mut names = catalogue::contenders_of(&scenario);
            names.retain(|name| asked(&arguments.contender, &|wanted| *name == wanted));
            (scenario, names)
        })
        .collect()
}

fn run(arguments: &Arguments) -> Result<(), Box<dyn Error>> {
    if arguments.list {
        catalogue::all().iter().for_each(|scenario| say(&scenario.name));
        contenders::ALL.iter().for_each(|contender| say(contender.name));
        return Ok(());
    }
    let plan = plan(arguments);
    if plan.iter().all(|(_, names)| names.is_empty()) {
        return Err("nothing of that name; --list says what there is".into());
    }
    let threads = arguments.threads.map_or_else(thread::available_parallelism, Ok)?;
    let started = Instant::now();
    let mut results = many::Results::new();
    let mut text = String::new();
    for done in 1..=plan.len() {
        let setting = &plan[done - 1..done];
        results.extend(many::run(setting, arguments.seeds, threads, |scenario, seed| {
            progress(&format!("{:>5} s: {scenario}, seed {seed}", started.elapsed().as_secs()));
        }));
        text = tables(arguments.seeds, &results, &plan[..done]);
        // As it goes, so that a run which is stopped leaves what it has found.
        if let Some(folder) = &arguments.write {
            fs::create_dir_all(folder)?;
            fs::write(folder.join("tables.md"), &text)?;
            plots::draw(&results, folder)?;
        }
    }
    say(&text);
    Ok(())
}

fn tables(seeds: u64, results: &many::Results, done: &[(Scenario, Vec<&'static str>)]) -> String {
    let settings: Vec<_> = done.iter().map(|(scenario, _)| table::setting(results, scenario)).collect();
    format!(
        "{seeds} seeds each. Slowdown: time from arrival to result ÷ the time alone on the largest node.\n\n{}\n{}",
        table::goals(results),
        settings.join("\n")
    )
}

fn main() -> ExitCode {
    match run(&Arguments::parse()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            progress(&format!("placement-simulator: {error}"));
            ExitCode::FAILURE
        }
    }
}
