mod causes;
mod claims;
mod deletion;
mod fixtures;
mod nodes;
mod objects;
mod properties;
mod status;
